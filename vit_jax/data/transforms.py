"""Host transforms: encoded bytes to the uint8 image that travels to the device.

Two traditions of pixels, both reproduced:

  'bilinear'  OpenCV, no antialias: equals tf.image.resize (Google's models)
  'bicubic'   Pillow, antialias: equals torchvision on PIL images (DeiT, timm)

All functions take and return uint8 (H, W, 3) arrays; random ones draw from the
numpy Generator they are given, and from nothing else.
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image

try:
  import cv2

  cv2.setNumThreads(0)  # parallel over images, not within one
except ImportError:  # Pillow alone works, with the same pixels, more slowly
  cv2 = None

CROPS = (
  'inception',
  'resize_crop',
  'squash_crop',
  'resize',
  'pad_crop',
  'none',
)
INTERPOLATIONS = ('bilinear', 'bicubic', 'random')


class BadImage(ValueError):
  """The bytes are not an image that can be decoded whole."""


def decode(data: bytes | np.ndarray) -> np.ndarray:
  """Encoded bytes to uint8 RGB (H, W, 3); arrays pass through.

  OpenCV if it is there, else Pillow: both decode with libjpeg-turbo to the
  same pixels. EXIF orientation is ignored, transparency dropped, 16-bit depth
  cut to its high byte.

  Raises:
    BadImage: not an image, or a truncated one.
  """
  if isinstance(data, np.ndarray):
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
      raise BadImage(
        f'an image array must be uint8 (H, W, 3), not {data.dtype} {data.shape}'
      )
    return data
  if cv2 is not None and data:
    image = cv2.imdecode(
      np.frombuffer(data, np.uint8),
      cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    )
    if image is not None:
      return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
  return decode_pillow(data)


def decode_pillow(data: bytes) -> np.ndarray:
  """`decode` by Pillow alone; also says what is wrong with a bad image."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      if image.mode.startswith('I;16'):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
      return np.array(image.convert('RGB'))
  except Exception as e:  # Pillow raises many types on broken files
    raise BadImage(str(e) or type(e).__name__) from e


def image_size(value) -> tuple[int, int]:
  """(height, width) of an int or a pair."""
  height, width = (value, value) if isinstance(value, int) else value
  return int(height), int(width)


def target_size(cfg) -> tuple[int, int]:
  """(height, width) that the model is given, of a config's data section."""
  return cfg.image_size, getattr(cfg, 'image_width', None) or cfg.image_size


def model_size(cfg) -> tuple[int, int]:
  """(height, width) of the images that the model is given."""
  return image_size(
    cfg.image_size if not cfg.image_width else (cfg.image_size, cfg.image_width)
  )


# --- Resizing ---------------------------------------------------------------


def resize(
  image: np.ndarray, size: tuple[int, int], interpolation: str = 'bilinear'
) -> np.ndarray:
  """Resizes to (height, width); the aspect ratio is not kept.

  Args:
    interpolation: 'bilinear' (OpenCV, no antialias), 'bicubic' (Pillow,
      antialias) or 'bilinear_antialias' (Pillow).
  """
  if image.shape[:2] == tuple(size):
    return image
  if interpolation == 'bilinear' and cv2 is not None:
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
  if interpolation == 'bilinear':
    return to_uint8(resize_float(image, size, 'bilinear'))
  filters = {
    'bicubic': Image.Resampling.BICUBIC,
    'bilinear_antialias': Image.Resampling.BILINEAR,
  }
  if interpolation not in filters:
    raise ValueError(
      f'interpolation {interpolation!r}: must be one of '
      f'bilinear, {", ".join(filters)}'
    )
  return np.asarray(
    Image.fromarray(image).resize((size[1], size[0]), filters[interpolation])
  )


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Rounds and clips a float image in [0, 255]."""
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _cubic(x, a):
  """Keys' cubic convolution kernel."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x, radius):
  return np.where(np.abs(x) < radius, np.sinc(x) * np.sinc(x / radius), 0.0)


def _mitchell(x):
  x = np.abs(x)
  near = ((7 * x - 12) * x * x + 16 / 3) / 6
  far = (((-7 / 3) * x + 12) * x - 20) * x / 6 + 32 / 18
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_KERNELS = {  # method: (radius, kernel), as in tf.image.ResizeMethod
  'bilinear': (1.0, lambda x: np.maximum(0.0, 1 - np.abs(x))),
  'bicubic': (2.0, lambda x: _cubic(x, -0.5)),
  'lanczos3': (3.0, lambda x: _lanczos(x, 3.0)),
  'lanczos5': (5.0, lambda x: _lanczos(x, 5.0)),
  'gaussian': (
    1.5,
    lambda x: np.where(np.abs(x) < 1.5, np.exp(-2.0 * x * x), 0.0),
  ),
  'mitchellcubic': (2.0, _mitchell),
}


def resize_weights(
  old: int, new: int, method: str = 'bilinear', antialias: bool = False
) -> np.ndarray:
  """The matrix (new, old) of a one-dimensional resize, float32.

  tf.image.resize's conventions: half-pixel centres; weights that fall outside
  are dropped and the rest renormalised (for bilinear, the edge repeated, which
  is the same); with `antialias` the kernel widens when shrinking. 'area'
  averages the covered interval, 'nearest' takes the floor of the centre.
  """
  scale = old / new
  out = np.arange(new)
  if method == 'nearest':
    source = np.minimum(np.floor((out + 0.5) * scale), old - 1)
    return (source[:, None] == np.arange(old)).astype(np.float32)
  if method == 'area':
    low, high = out * scale, (out + 1) * scale
    cells = np.arange(old)
    overlap = np.minimum(high[:, None], cells + 1) - np.maximum(
      low[:, None], cells
    )
    return (np.maximum(overlap, 0) / scale).astype(np.float32)
  if method not in _KERNELS:
    raise ValueError(
      f'resize method {method!r}: must be one of nearest, area, '
      f'{", ".join(_KERNELS)}'
    )
  radius, kernel = _KERNELS[method]
  # TF uses the scale-and-translate kernels for all but these two methods,
  # and those differ in that they always renormalise at the edges.
  stretch = max(scale, 1.0) if antialias else 1.0
  centre = (out + 0.5) * scale - 0.5
  if method == 'bilinear' and not antialias:
    centre = np.clip(centre, 0, old - 1)
  distance = (np.arange(old) - centre[:, None]) / stretch
  weights = np.where(np.abs(distance) < radius, kernel(distance), 0.0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize_float(
  image: np.ndarray,
  size: tuple[int, int],
  method: str = 'bilinear',
  antialias: bool = False,
) -> np.ndarray:
  """tf.image.resize in numpy: float32 (height, width, C), not rounded."""
  rows = resize_weights(image.shape[0], size[0], method, antialias)
  columns = resize_weights(image.shape[1], size[1], method, antialias)
  tall = np.einsum('ih,hwc->iwc', rows, image.astype(np.float32))
  return np.einsum('jw,iwc->ijc', columns, tall)


def short_side(height: int, width: int, target: int) -> tuple[int, int]:
  """Size with the shorter side at `target`, the longer cut off as torchvision
  does: int(target * long / short)."""
  if height <= width:
    return target, int(target * width / height)
  return int(target * height / width), target


# --- Crops ------------------------------------------------------------------


def inception_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
  """A random (top, left, height, width) of random area and aspect ratio.

  At most ten attempts: area uniform in `area` times the image's, the logarithm
  of width / height uniform in `aspect`, sides rounded, taken if it fits and
  then placed uniformly. Otherwise the largest centred box whose aspect ratio
  is within `aspect` (arXiv:1409.4842, sec. 6; torchvision's rule. TensorFlow's
  distorted_bounding_box has the aspect ratio itself uniform).
  """
  low, high = math.log(aspect[0]), math.log(aspect[1])
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(low, high))
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(0, height - h + 1))
      left = int(rng.integers(0, width - w + 1))
      return top, left, h, w
  if width / height < aspect[0]:
    w, h = width, min(height, round(width / aspect[0]))
  elif width / height > aspect[1]:
    w, h = min(width, round(height * aspect[1])), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


def cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  """The (top, left, height, width) box; what lies outside the image is 0."""
  top, left, height, width = box
  _rows, _columns = image.shape[:2]
  inside = image[
    max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)
  ]
  if inside.shape[:2] == (height, width):
    return np.ascontiguousarray(inside)
  out = np.zeros((height, width, 3), image.dtype)
  y, x = max(-top, 0), max(-left, 0)
  out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
  return out


def flip_left_right(image: np.ndarray) -> np.ndarray:
  if cv2 is not None:
    return cv2.flip(image, 1)
  return np.ascontiguousarray(image[:, ::-1])


def color_jitter(
  image: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
  """Brightness, contrast and saturation in a random order, each by a factor
  uniform in [max(0, 1 - strength), 1 + strength] (torchvision)."""
  from PIL import ImageEnhance

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
  """What happened to an image, for labels that live on its grid.

  Attributes:
    box: (top, left, height, width) of the crop, as fractions of the image.
    flip: whether it was mirrored after the crop.
    ops: the (name, argument) of each RandAugment operation, in order.
  """

  box: tuple[float, float, float, float]
  flip: bool = False
  ops: tuple = ()


class TrainTransform:
  """Decoded image to augmented image of the size that travels.

  `TrainTransform(cfg)` reads the keys crop, area, aspect, resize, pad,
  interpolation, flip, randaugment, color_jitter, normalize, image_size,
  image_width and device_resize of section `data` (config.py says what they
  mean) and raises ValueError on values that are not allowed. The order is crop
  and resize, flip, colour jitter (not with RandAugment, as in timm),
  RandAugment.
  """

  def __init__(self, cfg):
    from vit_jax.data.randaugment.policy import parse

    for key, allowed in (('crop', CROPS), ('interpolation', INTERPOLATIONS)):
      if cfg[key] not in allowed:
        raise ValueError(
          f'data.{key}={cfg[key]!r}: must be one of {", ".join(allowed)}'
        )
    self.crop, self.interpolation = cfg.crop, cfg.interpolation
    self.area, self.aspect = tuple(cfg.area), tuple(cfg.aspect)
    if not 0 < self.area[0] <= self.area[1] <= 1:
      raise ValueError(f'data.area={self.area}: must be 0 < low <= high <= 1')
    if not 0 < self.aspect[0] <= self.aspect[1]:
      raise ValueError(f'data.aspect={self.aspect}: must be 0 < low <= high')
    self.size = (
      image_size(cfg.device_resize) if cfg.device_resize else target_size(cfg)
    )
    self.resize, self.pad = cfg.resize, cfg.pad
    if self.crop in ('resize_crop', 'squash_crop'):
      if not self.resize or self.resize < max(self.size):
        raise ValueError(
          f'data.crop={self.crop!r} needs data.resize, at least '
          f'{max(self.size)} (the size cropped to), not {self.resize}'
        )
    self.flip, self.jitter = cfg.flip, cfg.color_jitter
    fill = (124, 116, 104) if cfg.normalize == 'imagenet' else (128, 128, 128)
    self.randaugment = parse(
      cfg.randaugment, fill=fill, interpolation=cfg.interpolation
    )

  def __call__(
    self, image: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, Geometry]:
    image, box = self._crop(image, rng)
    flip = rng.random() < self.flip
    if flip:
      image = flip_left_right(image)
    ops = ()
    if self.randaugment:
      image, ops = self.randaugment(image, rng)
    elif self.jitter:
      image = color_jitter(image, self.jitter, rng)
    return image, Geometry(box, flip, ops)

  def _crop(self, image, rng):
    height, width = image.shape[:2]
    interpolation = self.interpolation
    if interpolation == 'random':  # timm's: both antialiased
      interpolation = ('bilinear_antialias', 'bicubic')[rng.integers(2)]
    if self.crop == 'none':
      if (height, width) != self.size:
        raise ValueError(
          f"data.crop='none' with an image of {height}x{width} and "
          f"data.image_size={self.size}: use data.crop='resize'"
        )
      return image, (0.0, 0.0, 1.0, 1.0)
    if self.crop in ('resize_crop', 'squash_crop'):
      between = (
        short_side(height, width, self.resize)
        if self.crop == 'resize_crop'
        else (self.resize,) * 2
      )
      top = int(rng.integers(0, between[0] - self.size[0] + 1))
      left = int(rng.integers(0, between[1] - self.size[1] + 1))
      box = (top, left, *self.size)
      image = cut(resize(image, between, interpolation), box)
      height, width = between
    else:
      if self.crop == 'inception':
        box = inception_box(rng, height, width, self.area, self.aspect)
      elif self.crop == 'pad_crop':
        shift = rng.integers(-self.pad, self.pad + 1, 2)
        box = (int(shift[0]), int(shift[1]), height, width)
      else:
        box = (0, 0, height, width)
      image = resize(cut(image, box), self.size, interpolation)
    return image, (
      box[0] / height,
      box[1] / width,
      box[2] / height,
      box[3] / width,
    )


def eval_image(
  image: np.ndarray,
  size: tuple[int, int],
  crop: str | float = 'squash',
  interpolation: str = 'bilinear',
) -> np.ndarray:
  """The deterministic transform for evaluation.

  Args:
    size: (height, width) of the result.
    crop: 'squash' resizes to `size` whatever the aspect ratio (Google). A
      ratio c resizes the shorter side to floor(size / c) and takes the centre,
      rounding as timm and torchvision do; c > 1 pads with black.
    interpolation: 'bilinear' or 'bicubic', as for training.
  """
  if crop == 'squash':
    return resize(image, size, interpolation)
  scaled = [math.floor(s / crop) for s in size]
  height, width = image.shape[:2]
  if size[0] == size[1]:
    between = short_side(height, width, scaled[0])
  else:  # timm's ResizeKeepRatio
    ratio = min(height / scaled[0], width / scaled[1])
    between = (round(height / ratio), round(width / ratio))
  image = resize(image, between, interpolation)
  # torchvision pads to the size first, the odd pixel below and right.
  edge = lambda n, target: (
    -((target - n) // 2) if n < target else round((n - target) / 2)
  )
  return cut(
    image, (edge(between[0], size[0]), edge(between[1], size[1]), *size)
  )


def check_eval(crop: str | float, interpolation: str):
  """Raises ValueError unless `eval_image` takes these options."""
  number = isinstance(crop, (int, float)) and not isinstance(crop, bool)
  if crop != 'squash' and not (number and crop > 0):
    raise ValueError(
      f"eval.crop={crop!r}: must be 'squash' or a positive crop ratio such "
      'as 0.875'
    )
  if interpolation not in ('bilinear', 'bicubic'):
    raise ValueError(
      f'eval.interpolation={interpolation!r}: must be bilinear or bicubic'
    )
