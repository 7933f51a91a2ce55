"""RandAugment (arXiv:1909.13719) in both definitions in use, on uint8 images.

  'google(2,15)'            (layers, magnitude): big_vision's, which trained the
                            AugReg ViTs and the Mixers. Every chosen operation
                            applies, nearest-neighbour geometry, grey 128 fill.
  'rand-m9-mstd0.5-inc1'    timm's, which trained DeiT, CaiT, CeiT, VOLO and
                            DeepViT. Operations apply with probability 0.5, the
                            magnitude is drawn, bilinear or bicubic geometry,
                            filled with the mean colour.

The two families share names, not definitions: `GOOGLE` follows TensorFlow's
arithmetic (values cut off, not rounded), `TIMM` is Pillow's own. Each entry of
these tables is (level -> arguments, image and arguments -> image).
"""

import math

import numpy as np

from vit_jax.data import transforms

LEVELS = 10.0  # magnitudes count from 0 to 10; Google's may exceed it


# --- Google -----------------------------------------------------------------


def _blend(low: np.ndarray, high: np.ndarray, factor: float) -> np.ndarray:
  """low + factor * (high - low), cut off to uint8."""
  if factor == 1.0:
    return high
  low, out = low.astype(np.float32), high.astype(np.float32)
  out -= low
  out *= np.float32(factor)
  out += low
  return np.clip(out, 0, 255, out=out).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
  """TensorFlow's rgb_to_grayscale on uint8, (H, W, 1)."""
  scaled = image.astype(np.float32)
  scaled *= np.float32(1 / 255)
  weights = np.array([[0.2989, 0.5870, 0.1140]], np.float32)
  grey = (
    transforms.cv2.transform(scaled, weights)[..., None]
    if transforms.cv2 is not None
    else scaled @ weights.T
  )
  return (grey * np.float32(255.5)).astype(np.uint8)


def _table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Looks values up: one table of 256, or one a channel (256, 3)."""
  table = table.astype(np.uint8)
  if transforms.cv2 is not None:
    return transforms.cv2.LUT(image, table[None] if table.ndim == 2 else table)
  return (
    np.take(table, image) if table.ndim == 1 else table[image, np.arange(3)]
  )


_VALUES = np.arange(256)


def google_autocontrast(image):
  table = np.stack([_VALUES] * 3, axis=1)
  for c in range(3):
    low, high = np.float32(image[..., c].min()), np.float32(image[..., c].max())
    if high > low:
      scale = np.float32(255) / (high - low)
      stretched = _VALUES.astype(np.float32) * scale + -low * scale
      table[:, c] = np.clip(stretched, 0, 255).astype(np.uint8)
  return _table(image, table)


def google_equalize(image):
  table = np.stack([_VALUES] * 3, axis=1)
  for c in range(3):
    histogram = np.bincount(image[..., c].ravel(), minlength=256)
    filled = histogram[histogram > 0]
    step = (filled.sum() - filled[-1]) // 255
    if step:
      total = (np.cumsum(histogram) + step // 2) // step
      table[:, c] = np.clip(np.concatenate([[0], total[:-1]]), 0, 255)
  return _table(image, table)


def google_invert(image):
  return 255 - image


def google_posterize(image, bits):
  shift = min(max(8 - int(bits), 0), 7)  # TensorFlow limits the shift to 7
  return (image >> shift) << shift


def google_solarize(image, threshold):
  return _table(image, np.where(_VALUES < threshold, _VALUES, 255 - _VALUES))


def google_solarize_add(image, addition, threshold=128):
  added = np.clip(_VALUES + addition, 0, 255)
  return _table(image, np.where(_VALUES < threshold, added, _VALUES))


def google_color(image, factor):
  return _blend(np.repeat(_grey(image), 3, axis=-1), image, factor)


def google_contrast(image, factor):
  # The official mean is of a histogram's counts, that is, pixels / 256.
  level = np.clip(image.shape[0] * image.shape[1] / 256.0, 0, 255)
  low = np.full(256, int(level), np.uint8)
  return _table(image, _blend(low, _VALUES, factor))


def google_brightness(image, factor):
  return _table(image, _blend(np.zeros(256), _VALUES, factor))


def google_sharpness(image, factor):
  """Blends with a 3x3 smoothing (centre 5, others 1, over 13)."""
  smooth = image.copy()
  if min(image.shape[:2]) >= 3:  # the border stays as it is
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    x = image.astype(np.float32)
    if transforms.cv2 is not None:
      total = transforms.cv2.filter2D(x, -1, kernel)[1:-1, 1:-1]
    else:
      height, width = x.shape[0] - 2, x.shape[1] - 2
      total = sum(
        kernel[i, j] * x[i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
      )
    smooth[1:-1, 1:-1] = np.clip(total, 0, 255).astype(np.uint8)
  return _blend(smooth, image, factor)


def _google_affine(image, matrix, fill):
  """Nearest neighbour at source (x, y) = matrix (2, 3) of target (x, y, 1),
  in float32, halves away from zero; outside the image is `fill`."""
  height, width = image.shape[:2]
  a = np.asarray(matrix, np.float32)
  x = np.arange(width, dtype=np.float32)
  y = np.arange(height, dtype=np.float32)[:, None]
  source = np.empty((height, width, 2), np.float32)
  source[..., 0] = (a[0, 0] * x + a[0, 1] * y) + a[0, 2]
  source[..., 1] = (a[1, 0] * x + a[1, 1] * y) + a[1, 2]
  source += np.copysign(np.float32(0.5), source)  # the cast cuts towards zero
  np.clip(source, -2, max(height, width), out=source)  # outside stays outside
  fill = tuple(int(v) for v in fill)
  if transforms.cv2 is not None:
    return transforms.cv2.remap(
      image,
      source.astype(np.int16),
      None,
      transforms.cv2.INTER_NEAREST,
      borderMode=transforms.cv2.BORDER_CONSTANT,
      borderValue=fill,
    )
  source_x, source_y = np.moveaxis(source.astype(np.int32), -1, 0)
  inside = (
    (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
  )
  out = image[np.where(inside, source_y, 0), np.where(inside, source_x, 0)]
  out[~inside] = fill
  return out


def google_rotate(image, degrees, fill):
  height, width = image.shape[:2]
  angle = np.float32(degrees * math.pi / 180)
  cos, sin = np.cos(angle), np.sin(angle)
  w, h = np.float32(width - 1), np.float32(height - 1)
  x = (w - (cos * w - sin * h)) / np.float32(2)
  y = (h - (sin * w + cos * h)) / np.float32(2)
  return _google_affine(image, [[cos, -sin, x], [sin, cos, y]], fill)


def google_shear_x(image, level, fill):
  return _google_affine(image, [[1, level, 0], [0, 1, 0]], fill)


def google_shear_y(image, level, fill):
  return _google_affine(image, [[1, 0, 0], [level, 1, 0]], fill)


def google_translate_x(image, pixels, fill):
  return _google_affine(image, [[1, 0, pixels], [0, 1, 0]], fill)


def google_translate_y(image, pixels, fill):
  return _google_affine(image, [[1, 0, 0], [0, 1, pixels]], fill)


def google_cutout(image, half, y, x, fill):
  """Fills a square of half-side `half` about the fractional place (y, x)."""
  height, width = image.shape[:2]
  row, column = int(y * height), int(x * width)
  out = image.copy()
  out[
    max(0, row - half) : row + half, max(0, column - half) : column + half
  ] = np.asarray(fill, np.uint8)
  return out


def _signed(value):
  """Arguments of an operation with a random sign and a fill colour."""
  return lambda level, rng, fill: (
    float(rng.choice((-1, 1))) * value(level),
    fill,
  )


_none = lambda level, rng, fill: ()
_enhance = lambda level, rng, fill: (level / LEVELS * 1.8 + 0.1,)

# In the official order; translations by up to 100 pixels, cut-outs up to 40.
GOOGLE = {
  'AutoContrast': (_none, google_autocontrast),
  'Equalize': (_none, google_equalize),
  'Invert': (_none, google_invert),
  'Rotate': (_signed(lambda m: m / LEVELS * 30), google_rotate),
  'Posterize': (lambda m, rng, fill: (int(m / LEVELS * 4),), google_posterize),
  'Solarize': (lambda m, rng, fill: (int(m / LEVELS * 256),), google_solarize),
  'Color': (_enhance, google_color),
  'Contrast': (_enhance, google_contrast),
  'Brightness': (_enhance, google_brightness),
  'Sharpness': (_enhance, google_sharpness),
  'ShearX': (_signed(lambda m: m / LEVELS * 0.3), google_shear_x),
  'ShearY': (_signed(lambda m: m / LEVELS * 0.3), google_shear_y),
  'TranslateX': (_signed(lambda m: m / LEVELS * 100), google_translate_x),
  'TranslateY': (_signed(lambda m: m / LEVELS * 100), google_translate_y),
  'Cutout': (
    lambda m, rng, fill: (
      int(m / LEVELS * 40),
      rng.random(),
      rng.random(),
      fill,
    ),
    google_cutout,
  ),
  'SolarizeAdd': (
    lambda m, rng, fill: (int(m / LEVELS * 110),),
    google_solarize_add,
  ),
}


class GoogleRandAugment:
  """`layers` operations drawn with replacement, all at one magnitude."""

  def __init__(self, layers: int, magnitude: float):
    self.layers, self.magnitude = layers, magnitude

  def __call__(self, image: np.ndarray, rng: np.random.Generator):
    """Returns the image and the ((name, arguments), ...) that were applied."""
    names, applied = tuple(GOOGLE), []
    for _ in range(self.layers):
      name = names[rng.integers(len(names))]
      arguments, op = GOOGLE[name]
      args = arguments(self.magnitude, rng, (128, 128, 128))
      image = op(image, *args)
      applied.append((name, args))
    return image, tuple(applied)
