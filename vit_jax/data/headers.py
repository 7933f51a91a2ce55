"""What the header of an image claims, held against its bytes.

Pillow tells the size of an image before any pixel is decoded. The decoders read
the headers again on their own, and a file can be made in which they find other
sizes than Pillow does, or in which a few bytes claim a huge image.
"""

import re
import struct
from typing import NamedTuple

from PIL import Image

# Tags of TIFF: the width, height and number of rows of a block of pixels.
_TILE_WIDTH, _TILE_HEIGHT, _ROWS_PER_STRIP = 322, 323, 278
_LARGE_TILE = 2**22  # pixels; tiles may be larger than a small image
# The most pixels that a byte of a whole file can stand for. In a JPEG each
# block of 8 x 8 takes at least a bit. A PNG has up to 8 pixels in a byte, and
# is compressed 1,032 times at most.
_PIXELS_PER_BYTE = {'JPEG': 512, 'MPO': 512, 'PNG': 8256}
_MOST_SMALL = 2**22  # pixels that any file may claim
# The start of the image of a JPEG 2000 file: its sizes and its offsets.
_CODESTREAM = re.compile(rb'\xff\x4f\xff\x51.{4}(.{16})', re.DOTALL)


# Larger files are not read. Images of the largest allowed size take as much
# without compression, at 8 bytes a pixel.
MAX_BYTES = 2**30


class BadImage(ValueError):
  """The bytes are not an image that can be decoded as a whole."""


class JpegFrame(NamedTuple):
  """The header of an image within a JPEG.

  Attributes:
    marker: the kind of the frame, 0xC0 for a baseline JPEG.
    start: position of its segment, behind the marker.
    width, height: in pixels.
  """

  marker: int
  start: int
  width: int
  height: int


class JpegHeader(NamedTuple):
  """What a JPEG says before its first scan.

  Attributes:
    frames: all images that begin there; of a sound file, one.
    scan: position of the segment of the scan, behind its marker; 0 if there is
      none.
    restart: number of blocks of 8 x 8 pixels (or of the groups of them that are
      coded together) after which decoding can begin anew; 0 for none.
  """

  frames: list[JpegFrame]
  scan: int
  restart: int


def check(data: bytes, image: Image.Image, max_pixels: int) -> None:
  """Checks an image that Pillow has opened, but not decoded.

  Args:
    data: the bytes of the file.
    image: the image; its size is within the limits.
    max_pixels: what a decoder may have to make room for.

  Raises:
    BadImage: the bytes claim several sizes, or more pixels than they can hold.
  """
  width, height = image.size
  kind = image.format or ''
  check_bytes(data, width, height, _PIXELS_PER_BYTE.get(kind, max_pixels))
  sizes = []
  if kind in ('JPEG', 'MPO'):
    sizes = [(frame.width, frame.height) for frame in jpeg_header(data).frames]
  elif kind == 'PNG':
    sizes = [struct.unpack_from('>II', data, 16)]
  elif kind == 'JPEG2000':
    sizes = _jpeg_2000_sizes(data)
  elif kind == 'TIFF':
    _check_tiles(image, max_pixels)
  if any(size != (width, height) for size in sizes) or (
    kind != 'JPEG2000' and len(sizes) > 1
  ):
    named = {(width, height), *sizes}
    raise BadImage(
      'its headers name several sizes: '
      + ', '.join(f'{w} x {h}' for w, h in sorted(named)[:4])
    )


def check_bytes(
  data: bytes,
  width: int,
  height: int,
  pixels_per_byte: int = _PIXELS_PER_BYTE['JPEG'],
) -> None:
  """Raises BadImage if so many pixels cannot be in the bytes of a file."""
  if width * height > max(_MOST_SMALL, len(data) * pixels_per_byte):
    raise BadImage(
      f'{width} x {height} pixels are more than {len(data):,} bytes can hold'
    )


def jpeg_header(data: bytes) -> JpegHeader:
  """What a JPEG says before its first scan."""
  frames: list[JpegFrame] = []
  i, scan, restart = 2, 0, 0
  size = len(data)
  while (i := data.find(b'\xff', i)) >= 0:
    i += 1
    marker = data[i] if i < size else 0xD9
    if marker == 0xFF:  # any number of these may precede a marker
      continue
    i += 1
    if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
      continue  # markers without a segment
    if marker in (0xD9, 0xDA) or i + 2 > size:
      scan = i if marker == 0xDA else 0
      break
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      if i + 7 > size:
        break
      height, width = struct.unpack_from('>HH', data, i + 3)
      frames.append(JpegFrame(marker, i, width, height))
    elif marker == 0xDD and i + 4 <= size:
      restart = struct.unpack_from('>H', data, i + 2)[0]
    i += data[i] << 8 | data[i + 1]
  return JpegHeader(frames, scan, restart)


def _jpeg_2000_sizes(data: bytes) -> list[tuple[int, int]]:
  sizes = []
  for match in _CODESTREAM.finditer(data):
    right, bottom, left, top = struct.unpack('>4I', match[1])
    sizes.append((right - left, bottom - top))
  return sizes


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
  """Refuses a TIFF file whose blocks are much larger than the image."""
  tags = getattr(image, 'tag_v2', {})
  width, height = image.size
  tile_width = _number(tags.get(_TILE_WIDTH), width)
  tile_height = _number(tags.get(_TILE_HEIGHT), 0)
  rows = min(_number(tags.get(_ROWS_PER_STRIP), height), height)
  block = tile_width * max(tile_height, rows)
  if block > min(max_pixels, max(_LARGE_TILE, 4 * width * height)):
    raise BadImage(
      f'its blocks of {tile_width} x {max(tile_height, rows)} pixels are '
      f'larger than the image of {width} x {height}'
    )


def _number(value: object, default: int) -> int:
  return value if isinstance(value, int) else default
