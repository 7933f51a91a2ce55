"""Resizing of uint8 images by compiled code, where it is there.

`pixels.c` is compiled when the package is installed, if there is a C compiler
(setup.py). It calls no function of Python, so ctypes runs it without Python's
lock, and threads resize at once. `resize` has the same pixels without it, more
slowly.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import logging
import multiprocessing
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

_INT = ctypes.c_int32
_POINTER = ctypes.c_void_p


class _Axis(ctypes.Structure):
  """`axis` of pixels.c."""

  _fields_ = (
    ('size', _INT),
    ('taps', _INT),
    ('first', _POINTER),
    ('weights', _POINTER),
  )


class _Line(ctypes.Structure):
  """`line` of pixels.c."""

  _fields_ = (
    ('size', _INT),
    ('low', _POINTER),
    ('high', _POINTER),
    ('fraction', _POINTER),
  )


@dataclasses.dataclass(frozen=True)
class Taps:
  """How the pixels of one axis are weighted sums of those of an image.

  Pixel i of the result is the sum of weights[i, t] times pixel first[i] + t,
  divided by 2**22.

  Attributes:
    first: (new,) int32.
    weights: contiguous (new, taps) int32.
  """

  first: np.ndarray
  weights: np.ndarray

  @functools.cached_property
  def argument(self) -> _Axis:
    """For the compiled code; valid as long as this object is there."""
    return _Axis(*self.weights.shape, _start(self.first), _start(self.weights))


@dataclasses.dataclass(frozen=True)
class Line:
  """How the pixels of one axis lie between those of an image.

  Pixel i of the result lies between pixels low[i] and high[i], by fraction[i]
  of the way.

  Attributes:
    low, high: (new,) int32.
    fraction: (new,) float32.
  """

  low: np.ndarray
  high: np.ndarray
  fraction: np.ndarray

  @functools.cached_property
  def argument(self) -> _Line:
    """For the compiled code; valid as long as this object is there."""
    arrays = self.low, self.high, self.fraction
    return _Line(len(self.low), *map(_start, arrays))


_FUNCTIONS = {
  'vit_jax_resample': (
    (_POINTER, _INT, _INT, ctypes.c_ssize_t),  # the image
    (_Axis, _Axis, _POINTER),
  ),
  'vit_jax_bilinear': (
    (_POINTER, _INT, ctypes.c_ssize_t),
    (_Line, _Line, _POINTER, _POINTER),
  ),
}


@functools.cache
def library() -> Any:
  """The compiled code; None, with a warning, where it was not compiled."""
  found = importlib.util.find_spec('vit_jax.data._pixels')
  if found is None or found.origin is None:
    if multiprocessing.parent_process() is None:  # once, not in each worker
      log.warning(
        'vit_jax has no compiled code here: images are resized more slowly, to '
        'the same pixels. Install a C compiler (apt-get install gcc), and then '
        'vit_jax again with pip'
      )
    return None
  code = ctypes.CDLL(found.origin)
  for name, arguments in _FUNCTIONS.items():
    function = getattr(code, name)
    function.restype = ctypes.c_int
    function.argtypes = [kind for part in arguments for kind in part]
  return code


def resample(
  image: np.ndarray, rows: Taps, columns: Taps, out: np.ndarray
) -> np.ndarray:
  """Resizes by any kernel as Pillow does; needs `library()`.

  Args:
    image: uint8 (H, W, 3).
    rows: how the rows of the result are sums of those of the image.
    columns: the same for its columns, along which it is resized first.
    out: contiguous uint8 (height, width, 3) for the result.

  Returns:
    `out`.
  """
  image = _checked(image, out, len(rows.first), len(columns.first), ('uint8',))
  _raise_if_failed(
    library().vit_jax_resample(
      _start(image),
      *image.shape[:2],
      image.strides[0],
      columns.argument,
      rows.argument,
      _start(out),
    )
  )
  return out


def bilinear(
  image: np.ndarray, rows: Line, columns: Line, out: np.ndarray
) -> np.ndarray:
  """Resizes linearly as tf.image.resize does; needs `library()`.

  Args:
    image: uint8 (H, W, 3).
    rows, columns: where the rows and columns of the result lie.
    out: contiguous (height, width, 3) for the result: float32, or uint8, to
      which it is truncated.

  Returns:
    `out`.
  """
  image = _checked(
    image, out, len(rows.low), len(columns.low), ('uint8', 'float32')
  )
  results = (_start(out), None)
  _raise_if_failed(
    library().vit_jax_bilinear(
      _start(image),
      image.shape[1],
      image.strides[0],
      columns.argument,
      rows.argument,
      *(results if out.dtype == np.uint8 else results[::-1]),
    )
  )
  return out


def _checked(
  image: np.ndarray,
  out: np.ndarray,
  height: int,
  width: int,
  kinds: tuple[str, ...],
) -> np.ndarray:
  """The image, in whose rows the bytes have no gaps.

  Raises:
    ValueError: an array has another form than the compiled code takes, which
      would read or write other memory.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ValueError(
      f'the image is {image.dtype} {image.shape}, not uint8 (H, W, 3)'
    )
  if (
    out.shape != (height, width, 3)
    or out.dtype not in kinds
    or not out.flags.c_contiguous
  ):
    raise ValueError(
      f'the result needs a contiguous array of {kinds}, '
      f'({height}, {width}, 3), not {out.dtype} {out.shape} with strides '
      f'{out.strides}'
    )
  return image if image.strides[1:] == (3, 1) else np.ascontiguousarray(image)


def _start(array: np.ndarray) -> int:
  """The address of the first element."""
  return array.__array_interface__['data'][0]


def _raise_if_failed(failed: int) -> None:
  if failed:
    raise MemoryError('no memory to resize an image')
