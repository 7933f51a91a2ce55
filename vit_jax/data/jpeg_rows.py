"""Some rows or a box of a JPEG, without decoding all of it.

A random crop shows the rows of an image down to its own lower edge, on average
four fifths of them. A baseline JPEG is stored row by row, so a decoder that is
told a smaller height ends there: `decode_rows` writes that height into a copy
of the header. No bytes are removed, because their number is known only to a
decoder; it says, as its first warning, how many of them are left over.

Some JPEGs have a restart marker behind each row of blocks (`jpegtran -restart
1` writes them, and changes no pixel). Of these, the rows above the crop are not
decoded either, and the bytes of all other rows are removed.

`decode_box` is for decoders that leave out the pixels around a box themselves.
"""

from collections.abc import Callable, Sequence
import re
import struct
from typing import NamedTuple

import numpy as np

from vit_jax.data.crops import Box, cut
from vit_jax.data.headers import jpeg_header

# The warning of libjpeg-turbo about bytes that are left over before the end of
# the image. It keeps only its first warning, so this one also says that the
# decoded rows are sound.
_LEFT_OVER = re.compile(
  r'Corrupt JPEG data: \d+ extraneous bytes before .* 0xd9'
)
_SEQUENTIAL = 0xC0, 0xC1  # baseline and extended; Huffman codes
_END = b'\xff\xd9'
# Smoothing of colors that are stored at half the height or width reads the
# colors of two more rows or columns on either side.
_NEIGHBORS = 2


class Layout(NamedTuple):
  """How the rows of a JPEG are stored.

  Attributes:
    height, width: of the image.
    frame: position of the segment with the height.
    body: position of the first coded block.
    block: height of a row of blocks, in pixels.
    across: width of the blocks that are coded together, in pixels.
    restarts: whether a restart marker follows each row of blocks but the last.
  """

  height: int
  width: int
  frame: int
  body: int
  block: int
  across: int
  restarts: bool


def layout(data: bytes) -> Layout | None:
  """The layout of a JPEG whose rows follow one another in a single scan.

  None for every other one: progressive, in several scans, with 12 bits, or in
  the four colors of print, which are converted after decoding.
  """
  if data[:3] != b'\xff\xd8\xff':
    return None
  frames, scan, restart = jpeg_header(data)
  if len(frames) != 1 or not scan or scan + 2 >= len(data):
    return None
  marker, start, width, height = frames[0]
  bits, components = data[start + 2], data[start + 7]
  if not width or not height:
    return None
  if marker not in _SEQUENTIAL or bits != 8 or components not in (1, 3):
    return None
  if data[scan + 2] != components:
    return None
  across = down = 1
  if components == 3:  # blocks of gray images are coded one by one
    factors = [data[start + 9 + 3 * i] for i in range(3)]
    across, down = max(x >> 4 for x in factors), max(x & 15 for x in factors)
  body = scan + struct.unpack_from('>H', data, scan)[0]
  if not across or not down or body >= len(data):
    return None
  restarts = restart > 0 and restart == -(-width // (8 * across))
  return Layout(height, width, start, body, 8 * down, 8 * across, restarts)


def decode_rows(
  data: bytes, layout: Layout, top: int, bottom: int, decoder: Callable
) -> tuple[int, np.ndarray] | None:
  """Decodes some rows of a JPEG.

  Args:
    data: the bytes of the file.
    layout: its layout.
    top, bottom: the rows from `top` up to `bottom` are needed.
    decoder: `(data, buffer=array) -> array`, which decodes a JPEG into the
      array and then raises ValueError with the first warning of libjpeg-turbo.

  Returns:
    The number of the first row that was decoded, and the rows, uint8 (H, W, 3),
    as decoding the whole image gives them. None if nearly all rows are needed,
    or if something is wrong with the file, so that it must be decoded as a
    whole.
  """
  markers = _markers(data, layout) if layout.restarts else None
  margin = _NEIGHBORS if layout.block > 8 else 0
  if markers is None:
    first, end = 0, bottom + margin
  else:
    first = max(top - margin, 0) // layout.block * layout.block
    end = -(-(bottom + margin) // layout.block) * layout.block
  if first == 0 and end >= layout.height:
    return None
  height = min(end, layout.height) - first
  shorter = (
    bytearray(data)
    if markers is None
    else _without_other_rows(
      data, layout, markers, first // layout.block, end // layout.block
    )
  )
  struct.pack_into('>H', shorter, layout.frame + 3, height)
  pixels = np.empty((height, layout.width, 3), np.uint8)
  try:
    decoder(shorter, buffer=pixels)
  except ValueError as e:
    if markers is not None or not _LEFT_OVER.search(str(e)):
      return None
  wrong = 0 if end >= layout.height else margin  # they lack their neighbors
  above = margin if first else 0
  return first + above, pixels[above : height - wrong]


def decode_box(
  data: bytes, layout: Layout, box: Box, decoder: Callable
) -> np.ndarray | None:
  """Decodes a box of a JPEG.

  Args:
    data: the bytes of the file.
    layout: its layout.
    box: (top, left, height, width) in pixels, within the image.
    decoder: `(data, box) -> array or None`, as `jpeg_crops.decode_box`.

  Returns:
    The pixels, uint8 (height, width, 3), as decoding the whole image gives
    them. None if something is wrong with the file, so that it must be decoded
    as a whole.
  """
  top, left, height, width = box
  bottom, right = top + height, left + width
  above = _NEIGHBORS if layout.block > 8 else 0
  beside = _NEIGHBORS if layout.across > 8 else 0
  y0, y1 = max(top - above, 0), min(bottom + above, layout.height)
  x0 = max(left - beside, 0) // layout.across * layout.across
  x1 = min(right + beside, layout.width)
  skipped = 0
  if layout.restarts:
    markers = _markers(data, layout)
    if markers is None:
      return None
    first, end = y0 // layout.block, -(-y1 // layout.block)
    skipped = first * layout.block
    rows = min(end * layout.block, layout.height) - skipped
    shorter = _without_other_rows(data, layout, markers, first, end)
    struct.pack_into('>H', shorter, layout.frame + 3, rows)
    data = bytes(shorter)
  elif data.rfind(_END, layout.body) < 0:
    return None  # cut short, perhaps below the box
  pixels = decoder(data, (y0 - skipped, x0, y1 - y0, x1 - x0))
  return (
    None
    if pixels is None
    else cut(pixels, (top - y0, left - x0, height, width))
  )


def _markers(data: bytes, layout: Layout) -> list[int] | None:
  """The positions of all restart markers.

  None if one of them or the end of the image is missing, as in a file that is
  cut short.
  """
  count = -(-layout.height // layout.block) - 1
  body = np.frombuffer(data, np.uint8, offset=layout.body)
  markers = np.flatnonzero(body[:-1] == 0xFF)
  codes = body[markers + 1]
  markers = markers[(codes & 0xF8) == 0xD0][:count]
  if not np.array_equal(body[markers + 1], 0xD0 + np.arange(count) % 8):
    return None
  positions = [int(i) + layout.body for i in markers]
  complete = data.find(_END, positions[-1] if positions else layout.body) >= 0
  return positions if complete else None


def _without_other_rows(
  data: bytes, layout: Layout, markers: Sequence[int], first: int, end: int
) -> bytearray:
  """The JPEG with the rows of blocks from `first` up to `end` alone."""
  begin = markers[first - 1] + 2 if first else layout.body
  stop = markers[end - 1] if end <= len(markers) else len(data)
  shorter = bytearray(data[: layout.body])
  shorter += data[begin:stop]
  if end <= len(markers):
    shorter += _END
  # Restart markers are numbered from 0 to 7, again and again.
  code = layout.body - begin + 1
  for i, position in enumerate(markers[first : end - 1]):
    shorter[position + code] = 0xD0 + i % 8
  return shorter
