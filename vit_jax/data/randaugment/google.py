"""big_vision's RandAugment, on uint8 images.

Every operation that is drawn is applied, at one magnitude. Geometric
operations take the nearest pixel and fill with gray 128. The arithmetic is
TensorFlow's: values are truncated, not rounded, and constants are converted
to uint8 modulo 256. Source: big_vision/pp/autoaugment.py.
"""

import math

import cv2
import numpy as np

Color = tuple[int, int, int]

# The strongest magnitude of the paper. Recipes may exceed it.
LEVELS = 10.0


def _blend(low: np.ndarray, high: np.ndarray, factor: float) -> np.ndarray:
  """low + factor * (high - low), truncated to uint8."""
  if factor == 1.0:
    return high
  low, out = low.astype(np.float32), high.astype(np.float32)
  out -= low
  out *= np.float32(factor)
  out += low
  return np.clip(out, 0, 255, out=out).astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
  """TensorFlow's rgb_to_grayscale on uint8, (H, W, 1)."""
  scaled = image.astype(np.float32)
  scaled *= np.float32(1 / 255)
  weights = np.array([[0.2989, 0.5870, 0.1140]], np.float32)
  gray = cv2.transform(scaled, weights)[..., None]
  return (gray * np.float32(255.5)).astype(np.uint8)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Replaces each value by its entry in a table, (256,) or (256, 3)."""
  table = table.astype(np.uint8)
  return cv2.LUT(image, table[None] if table.ndim == 2 else table)


_VALUES = np.arange(256)


def google_autocontrast(image: np.ndarray) -> np.ndarray:
  """Stretches the values of each channel to [0, 255]."""
  table = np.stack([_VALUES] * 3, axis=1)
  for c in range(3):
    low, high = np.float32(image[..., c].min()), np.float32(image[..., c].max())
    if high > low:
      scale = np.float32(255) / (high - low)
      stretched = _VALUES.astype(np.float32) * scale + -low * scale
      table[:, c] = np.clip(stretched, 0, 255).astype(np.uint8)
  return _look_up(image, table)


def google_equalize(image: np.ndarray) -> np.ndarray:
  """Equalizes the histogram of each channel."""
  table = np.stack([_VALUES] * 3, axis=1)
  for c in range(3):
    histogram = np.bincount(image[..., c].ravel(), minlength=256)
    filled = histogram[histogram > 0]
    step = (filled.sum() - filled[-1]) // 255
    if step:
      total = (np.cumsum(histogram) + step // 2) // step
      table[:, c] = np.clip(np.concatenate([[0], total[:-1]]), 0, 255)
  return _look_up(image, table)


def google_invert(image: np.ndarray) -> np.ndarray:
  """255 - image."""
  return 255 - image


def google_posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the `bits` highest bits of each value."""
  # TensorFlow converts the shift to uint8, then limits it to 7.
  shift = min((8 - int(bits)) % 256, 7)
  return (image >> shift) << shift


def google_solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """Inverts the values that are at least `threshold`.

  TensorFlow converts the threshold to uint8: 256 becomes 0, which inverts the
  whole image, and 384 becomes 128.
  """
  threshold = int(threshold) % 256
  return _look_up(image, np.where(_VALUES < threshold, _VALUES, 255 - _VALUES))


def google_solarize_add(
  image: np.ndarray, addition: int, threshold: int = 128
) -> np.ndarray:
  """Adds to the values below `threshold`, and clips the result to 255."""
  added = np.clip(_VALUES + addition, 0, 255)
  return _look_up(image, np.where(_VALUES < threshold, added, _VALUES))


def google_color(image: np.ndarray, factor: float) -> np.ndarray:
  """Changes the saturation: 0 gives gray, 1 the image."""
  return _blend(np.repeat(_gray(image), 3, axis=-1), image, factor)


def google_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Changes the contrast: 0 gives one level of gray, 1 the image."""
  # The official code takes the mean of the histogram's counts, not of the
  # pixels. That mean is the number of pixels / 256.
  level = np.clip(image.shape[0] * image.shape[1] / 256.0, 0, 255)
  low = np.full(256, int(level), np.uint8)
  return _look_up(image, _blend(low, _VALUES, factor))


def google_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Changes the brightness: 0 gives black, 1 the image."""
  return _look_up(image, _blend(np.zeros(256), _VALUES, factor))


def google_sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """Changes the sharpness: 0 gives a smoothed image, 1 the image.

  The smoothing kernel is 3x3: 5 / 13 at the center, 1 / 13 around it.
  """
  smooth = image.copy()
  if min(image.shape[:2]) >= 3:  # pixels at the border are not smoothed
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    # OpenCV adds the nine terms in TensorFlow's order, with fused multiply-add.
    # The order matters, because sums close to an integer are truncated.
    total = cv2.filter2D(image.astype(np.float32), -1, kernel)[1:-1, 1:-1]
    smooth[1:-1, 1:-1] = np.clip(total, 0, 255).astype(np.uint8)
  return _blend(smooth, image, factor)


def _affine(image, matrix, fill):
  """Moves pixels by an affine map, nearest neighbor.

  Args:
    image: uint8 (H, W, 3).
    matrix: (2, 3), from the position (x, y, 1) in the result to the one in the
      image, computed in float32 and rounded with halves away from zero.
    fill: color of what lies outside of the image.
  """
  height, width = image.shape[:2]
  a = np.asarray(matrix, np.float32)
  x = np.arange(width, dtype=np.float32)
  y = np.arange(height, dtype=np.float32)[:, None]
  position = np.empty((height, width, 2), np.float32)
  position[..., 0] = (a[0, 0] * x + a[0, 1] * y) + a[0, 2]
  position[..., 1] = (a[1, 0] * x + a[1, 1] * y) + a[1, 2]
  position += np.copysign(np.float32(0.5), position)  # astype truncates
  # The limits fit into int16, and clipped positions stay outside of the image.
  np.clip(position, -2, max(height, width), out=position)
  return cv2.remap(
    image,
    position.astype(np.int16),
    np.empty(0),  # fractions of positions, which nearest neighbor does not need
    cv2.INTER_NEAREST,
    borderMode=cv2.BORDER_CONSTANT,
    borderValue=tuple(int(v) for v in fill),
  )


def google_rotate(image: np.ndarray, degrees: float, fill: Color) -> np.ndarray:
  """Rotates counterclockwise around the center."""
  height, width = image.shape[:2]
  angle = np.float32(degrees * math.pi / 180)
  cos, sin = np.cos(angle), np.sin(angle)
  w, h = np.float32(width - 1), np.float32(height - 1)
  x = (w - (cos * w - sin * h)) / np.float32(2)
  y = (h - (sin * w + cos * h)) / np.float32(2)
  return _affine(image, [[cos, -sin, x], [sin, cos, y]], fill)


def google_shear_x(image: np.ndarray, level: float, fill: Color) -> np.ndarray:
  """Pixel (x, y) of the result is pixel (x + level * y, y) of the image."""
  return _affine(image, [[1, level, 0], [0, 1, 0]], fill)


def google_shear_y(image: np.ndarray, level: float, fill: Color) -> np.ndarray:
  """Pixel (x, y) of the result is pixel (x, y + level * x) of the image."""
  return _affine(image, [[1, 0, 0], [level, 1, 0]], fill)


def google_translate_x(
  image: np.ndarray, pixels: float, fill: Color
) -> np.ndarray:
  """Moves the image to the left by `pixels`."""
  return _affine(image, [[1, 0, pixels], [0, 1, 0]], fill)


def google_translate_y(
  image: np.ndarray, pixels: float, fill: Color
) -> np.ndarray:
  """Moves the image up by `pixels`."""
  return _affine(image, [[1, 0, 0], [0, 1, pixels]], fill)


def google_cutout(
  image: np.ndarray, half: int, y: float, x: float, fill: Color
) -> np.ndarray:
  """Fills a square of side 2 * `half` pixels.

  Its center is at (y, x), as fractions of the height and width in [0, 1).
  """
  height, width = image.shape[:2]
  row, column = int(y * height), int(x * width)
  out = image.copy()
  out[
    max(0, row - half) : row + half, max(0, column - half) : column + half
  ] = np.asarray(fill, np.uint8)
  return out


def _signed(value):
  """Makes the arguments of an operation: a value of random sign, a color."""
  return lambda level, rng, fill: (
    float(rng.choice((-1, 1))) * value(level),
    fill,
  )


_none = lambda level, rng, fill: ()
_enhance = lambda level, rng, fill: (level / LEVELS * 1.8 + 0.1,)

# name: (function from level to arguments, operation), in the official order. At
# level 10, a translation moves by 100 pixels and a cut-out is 80 pixels wide.
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
  """`layers` operations, drawn with replacement, all at one magnitude."""

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
