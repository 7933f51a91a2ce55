"""Random boxes of training images, and cutting a box out of an image."""

from collections.abc import Callable
import math

import numpy as np

# (top, left, height, width) in pixels.
Box = tuple[int, int, int, int]

TORCHVISION_ATTEMPTS = 10
TENSORFLOW_ATTEMPTS = 100


def area_uniform_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """The box of torchvision's and timm's RandomResizedCrop.

  The area and the logarithm of the aspect ratio are uniform in their ranges.
  After ten boxes that do not fit into the image, the result is the largest
  centered box whose aspect ratio is allowed.

  Args:
    rng: the only source of randomness.
    height, width: size of the image in pixels.
    area: (low, high) of the area, as fractions of the image's.
    aspect: (low, high) of width / height.
  """
  low, high = math.log(aspect[0]), math.log(aspect[1])
  for _ in range(TORCHVISION_ATTEMPTS):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(low, high))
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(0, height - h + 1))
      left = int(rng.integers(0, width - w + 1))
      return top, left, h, w
  h, w = largest_box(height, width, aspect)
  return (height - h) // 2, (width - w) // 2, h, w


def largest_box(
  height: int, width: int, aspect: tuple[float, float]
) -> tuple[int, int]:
  """(height, width) of the largest box whose aspect ratio is in the range."""
  if width / height < aspect[0]:
    return min(height, round(width / aspect[0])), width
  if width / height > aspect[1]:
    return height, min(width, round(height * aspect[1]))
  return height, width


def height_uniform_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """The box of TensorFlow's `sample_distorted_bounding_box`.

  The aspect ratio is uniform in its range, then the height is uniform between
  the smallest and the largest one that the area, the aspect ratio and the
  image allow. Small boxes are therefore more frequent than with a uniform
  area. A box that is smaller than the image never touches the last row or
  column, because TensorFlow draws the offset from a range without its upper
  end. After a hundred boxes that do not fit, the result is the whole image.
  The arguments are those of `area_uniform_box`.
  """
  least, most = (a * height * width for a in area)
  for _ in range(TENSORFLOW_ATTEMPTS):
    ratio = rng.uniform(*aspect)
    highest = round(math.sqrt(most / ratio))
    if round(highest * ratio) > width:
      highest = int((width + 0.5) / ratio)
      # round() takes halves to the even number, which may still be too wide.
      highest -= round(highest * ratio) > width
    highest = min(highest, height)
    lowest = min(round(math.sqrt(least / ratio)), highest)
    h = int(rng.integers(lowest, highest + 1))
    w = round(h * ratio)
    if h * w < least:  # the box became too small by rounding
      h += 1
      w = round(h * ratio)
    if h * w > most:
      h -= 1
      w = round(h * ratio)
    if least <= h * w <= most and 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(height - h)) if h < height else 0
      left = int(rng.integers(width - w)) if w < width else 0
      return top, left, h, w
  return 0, 0, height, width


SAMPLERS: dict[str, Callable[..., Box]] = {
  'area': area_uniform_box,
  'height': height_uniform_box,
}


def cut(image: np.ndarray, box: Box) -> np.ndarray:
  """The pixels (height, width, 3) of a box; 0 where it leaves the image.

  It is a view of the image where the box is inside: whoever resizes it reads
  it once, so that a copy would not pay.
  """
  top, left, height, width = box
  inside = image[
    max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)
  ]
  if inside.shape[:2] == (height, width):
    return inside
  out = np.zeros((height, width, 3), image.dtype)
  y, x = max(-top, 0), max(-left, 0)
  out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
  return out
