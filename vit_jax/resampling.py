"""Weights of separable image resizing, for numpy and for jax.numpy.

A resize along one axis is a matrix (new, old), where row i has the weights of
the old pixels in the new pixel i. All code that resizes uses these kernels: for
images on the host and on the device, position tables and stored label maps.
"""

from typing import Any

import numpy as np


def triangle(distance: Any, xp: Any = np) -> Any:
  """The kernel of linear interpolation, max(0, 1 - |distance|)."""
  return xp.maximum(0.0, 1.0 - xp.abs(distance))


def keys_cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel (1981).

  Args:
    distance: distances from the sampled position in pixels, of any shape.
    a: the slope at distance 1: -0.5 in TensorFlow and Pillow, -0.75 in PyTorch.

  Returns:
    Weights of the shape of `distance`; zero at a distance of 2 and more.
  """
  x = np.abs(distance)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def lanczos(distance: np.ndarray, radius: int) -> np.ndarray:
  """The windowed sinc of `radius` pixels, sinc(x) sinc(x / radius)."""
  inside = np.abs(distance) < radius
  return np.where(inside, np.sinc(distance) * np.sinc(distance / radius), 0.0)


def gaussian(distance: np.ndarray) -> np.ndarray:
  """A Gaussian of deviation 1/2, zero from a distance of 1.5 on."""
  weights = np.exp(-2.0 * distance**2)
  return np.where(np.abs(distance) < 1.5, weights, 0.0)


def mitchell(distance: np.ndarray) -> np.ndarray:
  """The cubic kernel of Mitchell and Netravali (1988) with B = C = 1/3."""
  x = np.abs(distance)
  near = ((7 * x - 12) * x * x + 16 / 3) / 6
  far = (((-7 / 3 * x + 12) * x - 20) * x + 32 / 3) / 6
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def bilinear_matrix(
  old: int,
  new: int,
  *,
  start: Any = 0.0,
  length: Any = None,
  low: Any = 0,
  high: Any = None,
  xp: Any = np,
) -> Any:
  """Weights that sample an interval linearly, without antialias.

  The interval [start, start + length) is divided into `new` equal cells and
  sampled at their centers (half-pixel centers). Pixels outside of the image
  count as zero.

  Args:
    old: number of pixels of the image along the axis.
    new: number of pixels of the result.
    start: beginning of the interval in pixels; may be traced.
    length: length of the interval in pixels; by default that of the image.
    low, high: sampled positions are clipped to this range, by default from the
      center of the first pixel to that of the last, which repeats the edge.
    xp: numpy, or jax.numpy for traced arguments.

  Returns:
    (new, old), float32.
  """
  length = old if length is None else length
  high = old - 1 if high is None else high
  position = (xp.arange(new) + 0.5) * (length / new) - 0.5 + start
  position = xp.clip(position, low, high)
  weights = triangle(position[:, None] - xp.arange(old)[None], xp)
  return weights.astype(np.float32)


def aligned_matrix(old: int, new: int) -> np.ndarray:
  """Weights of linear interpolation with aligned corners: (new, old), float64.

  The first and last new pixels are copies of the first and last old pixels, as
  in `scipy.ndimage.zoom(order=1)`.
  """
  position = np.linspace(0.0, old - 1.0, new) if new > 1 else np.zeros(1)
  low = np.minimum(np.floor(position).astype(int), max(old - 2, 0))
  high = np.minimum(low + 1, old - 1)
  fraction = position - low
  matrix = np.zeros((new, old))
  np.add.at(matrix, (np.arange(new), low), 1.0 - fraction)
  np.add.at(matrix, (np.arange(new), high), fraction)
  return matrix


def bicubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
  """Weights of bicubic interpolation without antialias: (new, old), float64.

  Centers are at half pixels, and taps outside of the image read the edge. With
  the default slope `a` this is PyTorch's `interpolate(mode='bicubic')`.
  """
  position = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(position).astype(int)
  matrix = np.zeros((new, old))
  for tap in (-1, 0, 1, 2):
    weights = keys_cubic(position - (first + tap), a)
    index = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), weights)
  return matrix
