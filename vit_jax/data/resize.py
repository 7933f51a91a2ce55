"""Resizing of images on the host, as the released code bases do it.

  name                     method                         equals
  'bilinear'               bilinear, no antialias         tf.image.resize
  'area'                   mean of the covered area       tf.image.resize
  'tf_METHOD'              that method, no antialias      tf.image.resize
  'tf_METHOD_antialias'    that method, antialias         tf.image.resize
  'bilinear_antialias'     bilinear, antialias            Pillow, torchvision
  'bicubic'                bicubic, antialias             Pillow, torchvision
  'lanczos', 'hamming'     that kernel, antialias         Pillow, timm

METHOD is nearest, bilinear (with antialias), bicubic, lanczos3, lanczos5,
gaussian or mitchellcubic.

TensorFlow computes floating-point pixels. `rounding` turns them into integers:
'nearest' rounds, 'truncate' takes the integer below as big_vision does, and
'none' keeps float32 as vision_transformer does. Pillow always rounds, and does
so twice: after resizing along the rows, and after resizing along the columns.
The published recipes were run with versions that have this order; Pillow 13
exchanges it for some images whose height shrinks more than their width.

The most frequent of these are compiled (`pixels`): TensorFlow's 'bilinear', and
Pillow's 'bilinear_antialias' and 'bicubic'. The pixels are the same without.
"""

from collections.abc import Callable
import functools

import cv2
import numpy as np
from PIL import Image

from vit_jax import resampling
from vit_jax.data import pixels

_PILLOW = {
  'bilinear_antialias': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
  'hamming': Image.Resampling.HAMMING,
}
# The compiled ones: the kernel over the distance in pixels, and its radius.
_COMPILED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
  'bilinear_antialias': (resampling.triangle, 1),
  'bicubic': (lambda x: resampling.keys_cubic(x, -0.5), 2),
}
_ONE = 2**22  # Pillow's weights are multiples of 1 / _ONE
# Kernels of tf.image.resize over the distance in pixels.
_KERNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'bilinear': resampling.triangle,
  'bicubic': lambda x: resampling.keys_cubic(x, -0.5),
  'lanczos3': lambda x: resampling.lanczos(x, 3),
  'lanczos5': lambda x: resampling.lanczos(x, 5),
  'gaussian': resampling.gaussian,
  'mitchellcubic': resampling.mitchell,
}


def resize(
  image: np.ndarray,
  size: tuple[int, int],
  interpolation: str = 'bilinear',
  rounding: str = 'nearest',
  out: np.ndarray | None = None,
  mirrored: bool = False,
) -> np.ndarray:
  """Resizes an image; the aspect ratio is not kept.

  Args:
    image: (H, W, 3), uint8, or float32 with TensorFlow's interpolations.
    size: (height, width) of the result.
    interpolation, rounding: see the module docstring.
    out: contiguous array for the result. None makes a new one.
    mirrored: whether left and right are exchanged in the result.

  Returns:
    (height, width, 3), uint8, or float32 in [0, 255] if rounding is 'none'.
    It is `out` if that is given. Else it can be `image` itself if that has the
    size and the type of the result.
  """
  same_size = image.shape[:2] == size
  if not same_size and _is_compiled(image, interpolation, rounding):
    return _resize_compiled(image, size, interpolation, rounding, out, mirrored)
  if mirrored:
    return flip_left_right(resize(image, size, interpolation, rounding), out)
  if same_size:
    kind = np.float32 if rounding == 'none' else image.dtype
    return _into(out, image.astype(kind, copy=False))
  if interpolation in _PILLOW:
    return _into(out, _resize_as_pillow(image, size, interpolation))
  if interpolation == 'bilinear' and rounding == 'nearest':
    # Integer arithmetic, by 1 off at times. It stays because the runs and the
    # predictions of earlier versions have it.
    return cv2.resize(
      image, (size[1], size[0]), dst=out, interpolation=cv2.INTER_LINEAR
    )
  resized = resize_float(image, size, interpolation)
  if rounding == 'none':
    return _into(out, resized)
  if rounding == 'nearest':
    np.rint(resized, out=resized)
  if interpolation not in ('bilinear', 'area'):
    # Only kernels with negative weights leave [0, 255].
    np.clip(resized, 0, 255, out=resized)
  if out is None:
    return resized.astype(np.uint8)
  np.copyto(out, resized, casting='unsafe')
  return out


def flip_left_right(
  image: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
  """The mirrored image, (H, W, 3), in the contiguous array `out` if given."""
  return cv2.flip(image, 1, dst=out)


def _into(out: np.ndarray | None, result: np.ndarray) -> np.ndarray:
  """`result`, copied to `out` if that is given."""
  if out is None:
    return result
  np.copyto(out, result)
  return out


def _is_compiled(image: np.ndarray, interpolation: str, rounding: str) -> bool:
  """Whether `pixels` has this resize."""
  if interpolation not in _COMPILED and (
    interpolation != 'bilinear' or rounding == 'nearest'
  ):
    return False
  colors = image.dtype == np.uint8 and image.shape[2] == 3
  return colors and pixels.library() is not None


def _resize_compiled(
  image: np.ndarray,
  size: tuple[int, int],
  interpolation: str,
  rounding: str,
  out: np.ndarray | None,
  mirrored: bool,
) -> np.ndarray:
  """`resize` by compiled code, which also truncates and mirrors."""
  height, width, _ = image.shape
  if out is None:
    kind = np.float32 if rounding == 'none' else np.uint8
    out = np.empty((*size, 3), kind)
  if interpolation == 'bilinear':
    rows = _between(height, size[0])
    columns = _between(width, size[1], mirrored)
    return pixels.bilinear(image, rows, columns, out)
  return pixels.resample(
    image,
    _taps(height, size[0], interpolation),
    _taps(width, size[1], interpolation, mirrored),
    out,
  )


def _resize_as_pillow(
  image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Resizes along the rows, rounds, and resizes along the columns."""
  kernel = _PILLOW[interpolation]
  picture = Image.fromarray(image)
  # One side at a time, so that no version of Pillow chooses the order.
  picture = picture.resize((size[1], image.shape[0]), kernel)
  return np.asarray(picture.resize((size[1], size[0]), kernel))


@functools.lru_cache(maxsize=1024)  # crops share their sides with many others
def _taps(
  old: int, new: int, interpolation: str, mirrored: bool = False
) -> pixels.Taps:
  """Pillow's weights of one axis, in float64 and its order of operations.

  As in the functions of Pillow's src/libImaging/Resample.c, which compute them
  for images with 8 bits.
  """
  kernel, radius = _COMPILED[interpolation]
  scale = old / new
  stretch = max(scale, 1.0)
  center = (np.arange(new) + 0.5) * scale
  low = np.maximum((center - radius * stretch + 0.5).astype(int), 0)
  high = np.minimum((center + radius * stretch + 0.5).astype(int), old)
  count = int((high - low).max())
  # All have the same number of taps; weights beyond `low` and `high` are zero.
  first = np.minimum(low, old - count)
  pixel = first + np.arange(count)[:, None]
  weights = kernel((pixel - center + 0.5) * (1 / stretch))
  weights = np.where((pixel >= low) & (pixel < high), weights, 0.0)
  weights = weights / weights.cumsum(axis=0)[-1]  # added one by one
  # Rounded to the nearest multiple, and halves away from zero.
  weights = np.trunc(weights * _ONE + np.copysign(0.5, weights))
  order = slice(None, None, -1 if mirrored else 1)
  return pixels.Taps(
    np.ascontiguousarray(first[order], np.int32),
    np.ascontiguousarray(weights.T[order], np.int32),
  )


@functools.lru_cache(maxsize=1024)
def _between(old: int, new: int, mirrored: bool = False) -> pixels.Line:
  """Positions along one axis, in TensorFlow's float32 arithmetic.

  As in tensorflow/core/kernels/image/resize_bilinear_op.cc, with centers at
  half pixels.
  """
  half = np.float32(0.5)
  scale = np.float32(old) / np.float32(new)
  position = (np.arange(new, dtype=np.float32) + half) * scale - half
  below = np.floor(position)
  low = np.maximum(below, 0).astype(np.int32)
  high = np.minimum(np.ceil(position), old - 1).astype(np.int32)
  order = slice(None, None, -1 if mirrored else 1)
  return pixels.Line(
    *(np.ascontiguousarray(x[order]) for x in (low, high, position - below))
  )


def resize_float(
  image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Resizes as tf.image.resize: float32 (height, width, 3), not rounded.

  Args:
    image: uint8 or float32 (H, W, 3).
    size: (height, width).
    interpolation: one of TensorFlow's, see the module docstring.
  """
  method = interpolation.removeprefix('tf_').removesuffix('_antialias')
  antialias = interpolation.endswith('_antialias')
  if method == 'bilinear' and not antialias:
    return _resize_linearly(image, size)
  image = image.astype(np.float32)
  shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
  if method == 'area' and shrinks:  # OpenCV's 'area' enlarges differently
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
  if method == 'nearest':
    rows, columns = map(_nearest, image.shape, size)
    return image[rows[:, None], columns]
  rows, columns = (
    _weights(old, new, method, antialias)
    for old, new in zip(image.shape[:2], size, strict=True)
  )
  wide = np.matmul(columns, image)
  tall = rows @ wide.reshape(len(wide), -1)
  out = tall.reshape(size[0], size[1], image.shape[2])
  if method == 'area':  # sums become means, in TensorFlow's order of operations
    old_area = np.float32(image.shape[0]) / np.float32(size[0])
    old_area *= np.float32(image.shape[1]) / np.float32(size[1])
    out *= np.float32(1) / old_area
  return out


def _resize_linearly(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes linearly without antialias: float32 (height, width, 3)."""
  if _is_compiled(image, 'bilinear', 'none'):
    return _resize_compiled(image, size, 'bilinear', 'none', None, False)
  rows, columns = map(_between, image.shape, size)
  image = image.astype(np.float32)
  low, high = image[:, columns.low], image[:, columns.high]
  wide = low + (high - low) * columns.fraction[:, None]
  low, high = wide[rows.low], wide[rows.high]
  return low + (high - low) * rows.fraction[:, None, None]


@functools.lru_cache(maxsize=512)  # images of a data set share few sizes
def _weights(old: int, new: int, method: str, antialias: bool) -> np.ndarray:
  """The matrix (new, old) that resizes one axis, float32.

  Its rows add up to one. Only for 'area' a row holds the length of each old
  pixel that the new pixel covers.
  """
  if method == 'area':
    return _coverage(old, new)
  # Computed in float32 like TensorFlow, because its Gaussian jumps at the edge.
  one, half = np.float32(1), np.float32(0.5)
  scale = one / (np.float32(new) / np.float32(old))
  center = ((np.arange(new, dtype=np.float32) + half) * scale)[:, None]
  if method == 'bicubic' and not antialias:
    # TensorFlow reads this kernel from a table with steps of 1 / 1024.
    low = np.floor(center - half)
    center = low + np.rint((center - half - low) * 1024) / 1024 + half
  stretch = (
    max(scale, one) if antialias else one
  )  # factor of the kernel's width
  pixels = np.arange(old, dtype=np.float32) + half
  distance = (pixels - center) * (one / stretch)
  weights = _KERNELS[method](distance)
  # Pixels outside of the image are left out, so the rows are normalized.
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _nearest(old: int, new: int) -> np.ndarray:
  """The old pixel that holds the center of each new one, (new,) int.

  The arithmetic is TensorFlow's in float32.
  """
  scale = np.float32(old) / np.float32(new)
  center = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale
  return np.minimum(center.astype(int), old - 1)


def _coverage(old: int, new: int) -> np.ndarray:
  """The length of old pixel j that new pixel i covers: (new, old), float32.

  The arithmetic is TensorFlow's float32 arithmetic, so that values close to an
  integer are truncated to the same integer.
  """
  scale = np.float32(old) / np.float32(new)
  low = (np.arange(new, dtype=np.float32) * scale)[:, None]
  high = (np.arange(1, new + 1, dtype=np.float32) * scale)[:, None]
  left = np.arange(old, dtype=np.float32)[None]
  right = left + np.float32(1)
  one = np.float32(1)
  from_left = np.where(right > high, scale, right - low)
  whole = np.where(right > high, high - left, one)
  covered = np.where(left < low, from_left, whole)
  touched = (left >= np.floor(low)) & (left < np.ceil(high))
  return np.where(touched, covered, np.float32(0))
