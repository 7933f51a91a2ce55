"""How images are prepared: size, crop, interpolation, normalization."""

from collections.abc import Sequence
import dataclasses
import math
import numbers
import operator
import re
from typing import Any

from vit_jax import text

# (mean, std) of pixels in [0, 255].
NORMALIZATION = {
  'half': ((127.5,) * 3, (127.5,) * 3),  # to [-1, 1]: all Google models
  'imagenet': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
  'unit': ((0.0,) * 3, (255.0,) * 3),  # to [0, 1]
}
# Methods of tf.image.resize, which antialias only if their name says so; and
# Pillow's, which torchvision and timm use and which always antialias.
TENSORFLOW_INTERPOLATIONS = (
  'bilinear',
  'area',
  'tf_nearest',
  'tf_bilinear_antialias',
  *(
    f'tf_{method}{antialias}'
    for method in (
      'bicubic',
      'lanczos3',
      'lanczos5',
      'gaussian',
      'mitchellcubic',
    )
    for antialias in ('', '_antialias')
  ),
)
PILLOW_INTERPOLATIONS = ('bicubic', 'bilinear_antialias', 'lanczos', 'hamming')
INTERPOLATIONS = (*TENSORFLOW_INTERPOLATIONS, *PILLOW_INTERPOLATIONS)
# How the floating-point pixels of TensorFlow's methods become integers.
ROUNDINGS = ('nearest', 'truncate', 'none')
CROP_RESIZES = ('timm', 'resize_small', 'resize_long', 'squash')


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How an image file becomes the input of a model.

  The whole package uses this one value. The registry has that of each released
  model, recipes and checkpoints have that of a run, and classifiers and
  exported files apply it.

  Attributes:
    size: (height, width) of the model's input in pixels.
    crop: None resizes the image to `size`, whatever its aspect ratio. A ratio
      c > 0 resizes to size / c and takes the center. If c is above 1 (VOLO:
      1.15), the resized image is smaller than `size` and is padded with black.
    interpolation: one of INTERPOLATIONS. 'bilinear' does not antialias;
      'bicubic' is Pillow's, which does.
    normalize: see `normalization`.
    crop_resize: how to resize before the center crop. 'timm': the shorter side
      to size / c, the longer one in proportion, both rounded down.
      'resize_small': the same, rounded to the nearest integer, as in
      big_vision. 'resize_long': the longer side to size / c, as in big_vision;
      above and below, or left and right, it is padded with black. 'squash':
      both sides to size / c, whatever the aspect ratio.
    rounding: how the pixels of TensorFlow's interpolations become integers:
      'nearest', 'truncate' to the integer below (big_vision), or 'none' to keep
      floating point (vision_transformer).
    upright: turn an image as its EXIF orientation says. The published pipelines
      do not; without it photos of phones lie on their side.

  Raises:
    ValueError: a field has a value that is not allowed.
  """

  size: tuple[int, int] = (224, 224)
  crop: float | None = None
  interpolation: str = 'bilinear'
  normalize: str = 'half'
  crop_resize: str = 'timm'
  rounding: str = 'nearest'
  upright: bool = True

  def __post_init__(self):
    object.__setattr__(self, 'size', as_size(self.size))
    if self.crop is not None:
      if isinstance(self.crop, str | bool) or not 0 < self.crop < math.inf:
        raise ValueError(
          f'crop={self.crop!r}: must be a positive ratio such as 0.875, or '
          'None to resize to the image size whatever the aspect ratio'
        )
      object.__setattr__(self, 'crop', float(self.crop))
    for name, allowed in (
      ('crop_resize', CROP_RESIZES),
      ('interpolation', INTERPOLATIONS),
      ('rounding', ROUNDINGS),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r}; allowed: {", ".join(allowed)}'
        )
    normalization(self.normalize)
    check_rounding(self.rounding, self.interpolation)

  @property
  def pixel_dtype(self) -> str:
    """Type of the pixels before normalization: 'uint8' or 'float32'."""
    return 'float32' if self.rounding == 'none' else 'uint8'

  def __str__(self) -> str:
    """Text such as '224x224, squashed, bilinear, half normalization'."""
    crop = 'squashed'
    if self.crop is not None:
      crop = f'center crop of ratio {self.crop:g} ({self.crop_resize})'
    return (
      f'{text.shape(self.size)}, {crop}, {self.interpolation}, '
      f'{self.normalize} normalization'
      + ('' if self.upright else ', EXIF orientation ignored')
    )

  def to_json(self) -> dict[str, Any]:
    """Plain JSON values, from which `from_json` makes an equal value."""
    return {**dataclasses.asdict(self), 'size': list(self.size)}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'Preprocessing':
    """Reads what `to_json` wrote; ValueError names an unknown key.

    Version 0.1.0 wrote no 'upright', because it ignored the orientation.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
      raise ValueError(
        f'unknown key {unknown[0]!r}; allowed: {", ".join(sorted(names))}'
      )
    return cls(**{'upright': False, **values})


def normalization(
  style: str, key: str = 'normalize'
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """The mean and the deviation of three channels of pixels in [0, 255].

  Args:
    style: a key of NORMALIZATION; 'range(LOW,HIGH)', which takes 0 to LOW and
      255 to HIGH; or 'mean_std(R,G,B,R,G,B)' with the mean and the deviation of
      pixels in [0, 1], as PyTorch's code states them.
    key: what an error calls the value.

  Raises:
    ValueError: anything else, an empty range, or a deviation of zero.
  """
  if style in NORMALIZATION:
    return NORMALIZATION[style]
  error = ValueError(
    f'{key}={style!r}; allowed: {", ".join(NORMALIZATION)}, '
    "'range(LOW,HIGH)', or 'mean_std(R,G,B,R,G,B)' with the mean and the "
    'deviation of pixels in [0, 1]'
  )
  match = re.fullmatch(r'(range|mean_std)\((.*)\)', style)
  if match is None:
    raise error
  try:
    values = [float(word) for word in match[2].split(',')]
  except ValueError:
    raise error from None
  if not all(map(math.isfinite, values)):
    raise error
  if match[1] == 'range' and len(values) == 2 and values[0] != values[1]:
    low, high = values
    std = 255 / (high - low)
    return (0.0 - low * std,) * 3, (std,) * 3
  if match[1] == 'mean_std' and len(values) == 6 and all(values[3:]):
    scaled = tuple(255 * value for value in values)
    return scaled[:3], scaled[3:]
  raise error


def check_rounding(rounding: str, interpolation: str) -> None:
  """Raises ValueError for a rounding that does not go with an interpolation."""
  if rounding != 'nearest' and interpolation not in TENSORFLOW_INTERPOLATIONS:
    raise ValueError(
      f'rounding={rounding!r} with interpolation={interpolation!r}: Pillow '
      "rounds by itself. Use rounding='nearest', or one of the interpolations "
      f'{", ".join(TENSORFLOW_INTERPOLATIONS)}'
    )


def as_size(value: int | Sequence[int]) -> tuple[int, int]:
  """Makes (height, width) in pixels from one number (a square) or two.

  Raises:
    ValueError: `value` is not one or two positive whole numbers.
  """
  try:
    if isinstance(value, int | numbers.Integral):
      height = width = operator.index(value)
    else:
      height, width = map(operator.index, value)
  except (TypeError, ValueError):
    height = width = 0
  if height < 1 or width < 1:
    raise ValueError(
      f'image size {value!r}: give a positive number of pixels, or two as '
      '(height, width)'
    )
  return height, width
