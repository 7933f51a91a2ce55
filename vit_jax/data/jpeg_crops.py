"""Boxes of JPEGs, decoded without the transform of the pixels around them.

libjpeg-turbo can leave out the cosine transform and the colors of the pixels
above and beside a box; the Huffman codes above it are read, because each
depends on the one before it. No package for Python offers this in a way that
pays (docs/input_pipeline.md says what was tried), but version 3 of its C
interface, TurboJPEG, has three functions for it, and reports all errors and
warnings by return values. They are called where the library is found: on the
system, or within the package `turbojpeg`.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import pathlib
import threading
from typing import Any

import numpy as np

from vit_jax.data.crops import Box

# Constants of turbojpeg.h, which stay the same for all versions 3.
_DECOMPRESS = 1  # TJINIT_DECOMPRESS
_STOP_ON_WARNING, _FAST_DCT = 0, 10  # TJPARAM_STOPONWARNING, TJPARAM_FASTDCT
_RGB = 0  # TJPF_RGB

_local = threading.local()  # one thread at a time may use a decoder


class _Region(ctypes.Structure):
  """tjregion."""

  _fields_ = (
    ('x', ctypes.c_int),
    ('y', ctypes.c_int),
    ('w', ctypes.c_int),
    ('h', ctypes.c_int),
  )


# Short functions, called with Python's lock: giving it to another thread and
# getting it back would take longer than they do.
_SHORT = 'tj3DecompressHeader', 'tj3SetCroppingRegion'
# The functions that are called, with the types of their results and arguments.
_HANDLE, _BYTES = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t)
_FUNCTIONS = {
  'tj3Init': (_HANDLE, (ctypes.c_int,)),
  'tj3Destroy': (None, (_HANDLE,)),
  'tj3Set': (ctypes.c_int, (_HANDLE, ctypes.c_int, ctypes.c_int)),
  'tj3DecompressHeader': (ctypes.c_int, (_HANDLE, *_BYTES)),
  'tj3SetCroppingRegion': (ctypes.c_int, (_HANDLE, _Region)),
  'tj3Decompress8': (
    ctypes.c_int,
    (_HANDLE, *_BYTES, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
  ),
}


@functools.cache
def library() -> Any:
  """TurboJPEG; None where it is not found, or is older than version 3."""
  for path in _paths():
    try:
      found, short = ctypes.CDLL(path), ctypes.PyDLL(path)
      for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(short if name in _SHORT else found, name)
        setattr(found, name, function)
        function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not loadable, or an older version
      continue
    return found
  return None


def _paths() -> list[str]:
  """Where TurboJPEG may be."""
  system = ctypes.util.find_library('turbojpeg')
  paths = [system] if system else []
  package = importlib.util.find_spec('turbojpeg')
  if package is not None and package.origin:
    # Tools that make packages for all kinds of Linux put libraries here.
    beside = pathlib.Path(package.origin).parent / 'turbojpeg.libs'
    paths += map(str, sorted(beside.glob('libturbojpeg*')))
  return paths


class _Decoder:
  """A decoder of TurboJPEG, with the memory that it needs."""

  def __init__(self, jpeg_dct: str):
    self._library = library()
    self._handle = self._library.tj3Init(_DECOMPRESS)
    if not self._handle:
      raise MemoryError('TurboJPEG makes no decoder')
    self._library.tj3Set(self._handle, _STOP_ON_WARNING, 1)
    self._library.tj3Set(self._handle, _FAST_DCT, jpeg_dct == 'fast')

  def __call__(self, data: bytes, box: Box, out: np.ndarray) -> bool:
    """Decodes a box to an array of its size; False for an error or warning."""
    top, left, height, width = box
    size, region = len(data), _Region(left, top, width, height)
    start, _ = out.__array_interface__['data']
    handle, call = self._handle, self._library
    return not (
      call.tj3DecompressHeader(handle, data, size)
      or call.tj3SetCroppingRegion(handle, region)
      or call.tj3Decompress8(handle, data, size, start, 0, _RGB)
    )

  def __del__(self):
    if getattr(self, '_handle', None):
      self._library.tj3Destroy(self._handle)


def decode_box(data: bytes, box: Box, jpeg_dct: str) -> np.ndarray | None:
  """Decodes a box of a JPEG; needs `library()`.

  Colors that are stored at less than the full size are smoothed, and near the
  edges of the box the pixels may differ from those of the whole image.

  Args:
    data: the bytes of the file.
    box: (top, left, height, width) in pixels, within the image; `left` is a
      multiple of the width of the blocks that are coded together.
    jpeg_dct: one of `decode.JPEG_DCT`.

  Returns:
    uint8 (height, width, 3); None if the library does not decode the box
    without an error or a warning.
  """
  decoders = _local.__dict__.setdefault('decoders', {})
  if jpeg_dct not in decoders:
    decoders[jpeg_dct] = _Decoder(jpeg_dct)
  pixels = np.empty((*box[2:], 3), np.uint8)
  return pixels if decoders[jpeg_dct](data, box, pixels) else None
