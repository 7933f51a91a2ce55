"""The upper rows of a JPEG, without decoding those below them.

A random crop shows the rows of an image down to its own lower edge, on average
four fifths of them. A baseline JPEG is stored row by row, so a decoder that is
told a smaller height ends there: `first_rows` writes that height into a copy of
the header. No bytes are removed, because their number is known only to a
decoder; it says, as its first warning, how many of them are left over.
"""

from collections.abc import Callable
import re
import struct

import numpy as np

from vit_jax.data.headers import JpegFrame, jpeg_frames

# The message of libjpeg-turbo for bytes that are left over before the end of
# the image. It keeps the first warning only, so that there was none about the
# decoded rows.
_LEFT_OVER = re.compile(
  r'Corrupt JPEG data: \d+ extraneous bytes before .* 0xd9'
)
_SEQUENTIAL = 0xC0, 0xC1  # baseline and extended; Huffman codes
# Smoothing of colors that are stored at half the height reads the colors of the
# next two rows.
_NEXT_ROWS = 2


def sequential_frame(data: bytes) -> JpegFrame | None:
  """The frame of a JPEG whose rows follow one another in a single scan.

  None for every other one: progressive, in several scans, with 12 bits, or in
  the four colors of print, which are converted after decoding.
  """
  frames, scan = jpeg_frames(data)
  if len(frames) != 1 or not scan or scan + 2 >= len(data):
    return None
  marker, start, _, _ = frames[0]
  bits, components = data[start + 2], data[start + 7]
  if marker not in _SEQUENTIAL or bits != 8 or components not in (1, 3):
    return None
  if data[scan + 2] != components:
    return None
  return frames[0]


def first_rows(
  data: bytes, frame: JpegFrame, rows: int, decoder: Callable
) -> np.ndarray | None:
  """Decodes the first rows of a JPEG.

  Args:
    data: the bytes of the file.
    frame: its `sequential_frame`.
    rows: how many rows are needed, at least 1.
    decoder: `(data, buffer=array) -> array`, which decodes a JPEG into the
      array and then raises ValueError with the first warning of libjpeg-turbo.

  Returns:
    uint8 (rows, W, 3), the rows that decoding the whole image gives; None if
    they are nearly all rows, or if something is wrong with the file, so that it
    must be decoded as a whole.
  """
  height = rows + _NEXT_ROWS
  if height >= frame.height:
    return None
  shorter = bytearray(data)
  struct.pack_into('>H', shorter, frame.start + 3, height)
  pixels = np.empty((height, frame.width, 3), np.uint8)
  try:
    decoder(shorter, buffer=pixels)
  except ValueError as e:
    if not _LEFT_OVER.search(str(e)):
      return None
  return pixels[:rows]
