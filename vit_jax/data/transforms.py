"""Host transforms: from a decoded image to the pixels sent to the device.

Training images are cropped at random, flipped and augmented (`TrainTransform`),
evaluation images are resized and cropped in a fixed way (`eval_image`). All
random numbers come from the numpy Generator that a transform is given.
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageEnhance

from vit_jax.data import crops, randaugment
from vit_jax.data.crops import Box, cut
from vit_jax.data.late_jpeg import LateJpeg
from vit_jax.data.resize import resize
from vit_jax.preprocessing import (
  INTERPOLATIONS,
  ROUNDINGS,
  Preprocessing,
  check_rounding,
)

CROPS = (
  'inception',
  'resize_crop',
  'squash_crop',
  'resize',
  'pad_crop',
  'none',
)
# 'random' draws Pillow's bilinear or bicubic for each image, as timm does.
TRAIN_INTERPOLATIONS = (*INTERPOLATIONS, 'random')


def short_side(height: int, width: int, target: int) -> tuple[int, int]:
  """The size whose shorter side is `target`, as torchvision computes it.

  The longer side is int(target * long / short).
  """
  if height <= width:
    return target, int(target * width / height)
  return int(target * height / width), target


def proportional_size(
  height: int, width: int, target: int, side: str
) -> tuple[int, int]:
  """The size whose 'short' or 'long' side is `target`, as in big_vision.

  Both sides are computed in float32 and rounded to the nearest integer.
  """
  old = min(height, width) if side == 'short' else max(height, width)
  ratio = np.float32(target) / np.float32(old)
  new_height, new_width = (
    int(np.rint(np.float32(n) * ratio)) for n in (height, width)
  )
  return new_height, new_width


def central_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The central (height, width) of an image, as big_vision takes it.

  If the number of pixels to remove is odd, the bottom or the right side loses
  one more.
  """
  height, width = image.shape[:2]
  return cut(image, (*_center((height, width), size), *size))


def _center(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
  """(top, left) of the central window of size `new`."""
  return (old[0] - new[0]) // 2, (old[1] - new[1]) // 2


def color_jitter(
  image: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
  """Changes brightness, contrast and saturation, in a random order.

  Args:
    image: uint8 (H, W, 3).
    strength: brightness, contrast and saturation are each multiplied by a
      factor that is uniform in [max(0, 1 - strength), 1 + strength], as in
      torchvision's ColorJitter.
    rng: the only source of randomness.
  """
  enhancers = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
  )
  picture = Image.fromarray(image)
  for k in rng.permutation(3):
    factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
    picture = enhancers[k](picture).enhance(factor)
  return np.asarray(picture)


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What was done to an image, so that labels of its patches can follow.

  Attributes:
    box: (top, left, height, width) of the crop, as fractions of the image.
    flip: whether the crop was mirrored.
    ops: the (name, arguments) of each RandAugment operation, in order.
  """

  box: tuple[float, float, float, float]
  flip: bool = False
  ops: tuple = ()


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """Random crop and resize, flip, then RandAugment or color jitter.

  The fields are the keys of the same name of a recipe's section `data`;
  `recipe.keys` says what they mean. As in timm, there is no color jitter with
  RandAugment.

  Attributes:
    size: (height, width) of the result.
    fill: RGB color of the pixels that timm's geometric operations leave empty.

  Raises:
    ValueError: a field has a value that is not allowed.
  """

  size: tuple[int, int]
  crop: str = 'inception'
  crop_sampling: str = 'area'
  area: tuple[float, float] = (0.05, 1.0)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  resize: int | None = None
  pad: int = 4
  interpolation: str = 'bilinear'
  rounding: str = 'nearest'
  flip: float = 0.5
  randaugment: str = ''
  color_jitter: float = 0.0
  fill: tuple[int, int, int] = (128, 128, 128)

  def __post_init__(self):
    for key, allowed in (
      ('crop', CROPS),
      ('crop_sampling', tuple(crops.SAMPLERS)),
      ('interpolation', TRAIN_INTERPOLATIONS),
      ('rounding', ROUNDINGS),
    ):
      if getattr(self, key) not in allowed:
        raise ValueError(
          f'data.{key}={getattr(self, key)!r}: must be one of '
          f'{", ".join(allowed)}'
        )
    check_rounding(self.rounding, self.interpolation)
    if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
      raise ValueError(
        f'data.area={self.area}: must be (low, high) with 0 < low <= high <= 1'
      )
    if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1]:
      raise ValueError(
        f'data.aspect={self.aspect}: must be (low, high) with 0 < low <= high'
      )
    if self.pad < 0 or self.color_jitter < 0:
      raise ValueError(
        f'data.pad={self.pad}, data.color_jitter={self.color_jitter}: must not '
        'be negative'
      )
    if self.crop in ('resize_crop', 'squash_crop') and (
      not self.resize or self.resize < max(self.size)
    ):
      raise ValueError(
        f'data.crop={self.crop!r} needs data.resize, at least '
        f'{max(self.size)} (the size of the crop), not {self.resize}'
      )
    if self.rounding == 'none' and (self.randaugment or self.color_jitter):
      raise ValueError(
        "data.rounding='none' keeps floating-point pixels, and data.randaugment"
        ' and data.color_jitter need integers: use another rounding'
      )
    self._policy  # noqa: B018  (read now, so that a wrong policy raises here)

  @property
  def dtype(self) -> type[np.generic]:
    """The type of the pixels of a result."""
    return np.float32 if self.rounding == 'none' else np.uint8

  @functools.cached_property
  def _policy(self):
    return randaugment.parse(
      self.randaugment, fill=self.fill, interpolation=self.interpolation
    )

  def __call__(
    self,
    image: np.ndarray | LateJpeg,
    rng: np.random.Generator,
    out: np.ndarray | None = None,
  ) -> tuple[np.ndarray, Geometry]:
    """Transforms one image.

    Args:
      image: uint8 (H, W, 3), or a JPEG of which only the rows that the crop
        needs are decoded.
      rng: the only source of randomness.
      out: contiguous array for the result, such as the place of the image in
        its batch. None makes a new one.

    Returns:
      The result, (*size, 3), of type `dtype`, in [0, 255]; and what was done to
      the image.

    Raises:
      BadImage: the JPEG cannot be decoded.
    """
    image, box, flip = self._crop(image, rng, out)
    ops = ()
    if self._policy:
      image, ops = self._policy(image, rng)
    elif self.color_jitter:
      image = color_jitter(image, self.color_jitter, rng)
    if out is not None:
      if self._policy or self.color_jitter:
        np.copyto(out, image)
      image = out
    return image, Geometry(box, flip, ops)

  def draw_box(self, rng: np.random.Generator, height: int, width: int) -> Box:
    """Draws the box that a random crop shows of an image of (height, width).

    For 'resize_crop' and 'squash_crop', (height, width) is the size after
    resizing (see `resized_size`). The box of a 'pad_crop' may reach beyond the
    edges of the image.
    """
    if self.crop == 'inception':
      return crops.SAMPLERS[self.crop_sampling](
        rng, height, width, self.area, self.aspect
      )
    if self.crop in ('resize_crop', 'squash_crop'):
      top = int(rng.integers(0, height - self.size[0] + 1))
      left = int(rng.integers(0, width - self.size[1] + 1))
      return top, left, *self.size
    if self.crop == 'pad_crop':
      shift = rng.integers(-self.pad, self.pad + 1, 2)
      return int(shift[0]), int(shift[1]), height, width
    return 0, 0, height, width

  def resized_size(self, height: int, width: int) -> tuple[int, int]:
    """The (height, width) to which an image is resized before the crop."""
    if self.resize and self.crop == 'resize_crop':
      return short_side(height, width, self.resize)
    if self.resize and self.crop == 'squash_crop':
      return self.resize, self.resize
    return height, width

  def _crop(self, image, rng, out):
    """The cropped, resized and flipped image, and how it was made.

    Returns:
      The image, which is in `out` if that is given and nothing follows; the
      box, in fractions of the image; and whether the crop was flipped.
    """
    interpolation = self.interpolation
    if interpolation == 'random':
      interpolation = ('bilinear_antialias', 'bicubic')[rng.integers(2)]
    height, width = self.resized_size(*image.shape[:2])
    if self.crop == 'none' and (height, width) != self.size:
      raise ValueError(
        f"data.crop='none' with an image of {height}x{width}, but the model "
        f"takes {self.size[0]}x{self.size[1]}: use data.crop='resize'"
      )
    if image.shape[:2] != (height, width):
      image = _whole(image)
      image = resize(image, (height, width), interpolation, self.rounding)
    box = top, left, box_height, box_width = self.draw_box(rng, height, width)
    flip = rng.random() < self.flip
    if self._policy or self.color_jitter:
      out = None
    image = resize(
      _cut_out(image, box),
      self.size,
      interpolation,
      self.rounding,
      out,
      mirrored=flip,
    )
    fractions = top / height, left / width, box_height / height
    return image, (*fractions, box_width / width), flip


def _whole(image: np.ndarray | LateJpeg) -> np.ndarray:
  if isinstance(image, np.ndarray):
    return image
  return image.rows(0, image.shape[0])[1]


def _cut_out(image: np.ndarray | LateJpeg, box: Box) -> np.ndarray:
  """`cut`, for which a JPEG is decoded where the box is."""
  if isinstance(image, np.ndarray):
    return cut(image, box)
  top, left, height, width = box
  inside = min(top, left) >= 0
  inside &= top + height <= image.shape[0] and left + width <= image.shape[1]
  # The box of a 'pad_crop' may reach beyond the image.
  return image.cut(box) if inside else cut(_whole(image), box)


def eval_image(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
  """Resizes and crops an image for evaluation.

  Args:
    image: uint8 (H, W, 3).
    preprocessing: size, crop, interpolation and rounding. Normalization
      happens on the device.

  Returns:
    (*size, 3), uint8, or float32 in [0, 255] if `rounding` is 'none'.
  """
  p = preprocessing
  resized, (top, left) = _eval_geometry(image.shape[0], image.shape[1], p)
  image = resize(image, resized, p.interpolation, p.rounding)
  return image if p.crop is None else cut(image, (top, left, *p.size))


def eval_window(
  height: int, width: int, preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
  """The window of an image that `eval_image` shows to a model.

  Args:
    height, width: of the image in pixels.
    preprocessing: as for `eval_image`.

  Returns:
    (top, left, height, width) in pixels of the image. The window leaves the
    image where `eval_image` pads.
  """
  p = preprocessing
  resized, (top, left) = _eval_geometry(height, width, p)
  y, x = height / resized[0], width / resized[1]
  return top * y, left * x, p.size[0] * y, p.size[1] * x


def _eval_geometry(
  height: int, width: int, p: Preprocessing
) -> tuple[tuple[int, int], tuple[int, int]]:
  """The (height, width) that `eval_image` resizes to, and (top, left) there."""
  if p.crop is None:
    return p.size, (0, 0)
  if p.crop_resize == 'timm':
    return _timm_eval_geometry(height, width, p, p.crop)
  resized = round(p.size[0] / p.crop), round(p.size[1] / p.crop)
  if p.crop_resize != 'squash':
    side = {'resize_small': 'short', 'resize_long': 'long'}[p.crop_resize]
    resized = proportional_size(height, width, max(resized), side)
  return resized, _center(resized, p.size)


def _timm_eval_geometry(
  height: int, width: int, p: Preprocessing, crop: float
) -> tuple[tuple[int, int], tuple[int, int]]:
  """timm's: shorter side to floor(size / crop), then torchvision's center."""
  target_height, target_width = (math.floor(n / crop) for n in p.size)
  if target_height == target_width:
    resized = short_side(height, width, target_height)
  else:  # timm's ResizeKeepRatio
    ratio = min(height / target_height, width / target_width)
    resized = (round(height / ratio), round(width / ratio))
  top, left = (
    # torchvision pads an image that is smaller than the crop, and puts an odd
    # pixel at the bottom or on the right.
    -((new - old) // 2) if old < new else round((old - new) / 2)
    for old, new in zip(resized, p.size, strict=True)
  )
  return resized, (top, left)
