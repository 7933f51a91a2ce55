"""JPEGs of which only what a random crop shows is decoded."""

import dataclasses
import functools

import numpy as np

from vit_jax.data import decode as decode_lib
from vit_jax.data import headers, jpeg_crops, jpeg_rows
from vit_jax.data.crops import Box, cut
from vit_jax.data.decode import DEFAULT_DECODING, BadImage, Decoding, decode


def decode_when_cropped(
  data: bytes | np.ndarray, decoding: Decoding = DEFAULT_DECODING
) -> 'np.ndarray | LateJpeg':
  """As `decode`, but leaves the pixels of most JPEGs to `LateJpeg.cut`.

  Damage outside the pixels that are needed is not noticed. So it is for data
  sets whose images were all decoded when they were written.
  """
  if isinstance(data, np.ndarray):
    return decode(data, decoding)
  try:
    jpeg = _late_jpeg(data, decoding)
  except BadImage:
    raise
  except Exception as e:  # of a broken header
    raise BadImage(decode_lib.reason(data, e)) from e
  return decode(data, decoding) if jpeg is None else jpeg


@dataclasses.dataclass(frozen=True)
class LateJpeg:
  """An upright JPEG of which only the pixels that are needed are decoded.

  Attributes:
    data: the bytes of the file.
    layout: its `jpeg_rows.layout`.
    decoding: how it is decoded.
  """

  data: bytes
  layout: jpeg_rows.Layout
  decoding: Decoding

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.layout.height, self.layout.width, 3

  def cut(self, box: Box) -> np.ndarray:
    """The pixels of a box.

    They are decoded by TurboJPEG where it is found; else, or where it reports
    an error, as `rows`.

    Args:
      box: (top, left, height, width) in pixels, within the image.

    Returns:
      uint8 (height, width, 3), as `decode` gives them for the whole image.

    Raises:
      BadImage: they cannot be decoded, or the file is cut short.
    """
    if jpeg_crops.library() is not None:
      decoder = functools.partial(
        jpeg_crops.decode_box, jpeg_dct=self.decoding.jpeg_dct
      )
      pixels = jpeg_rows.decode_box(self.data, self.layout, box, decoder)
      if pixels is not None:
        return pixels
    top, left, height, width = box
    first, rows = self.rows(top, top + height)
    return cut(rows, (top - first, left, height, width))

  def rows(self, top: int, bottom: int) -> tuple[int, np.ndarray]:
    """The rows from `top` up to `bottom` of the image, and some around them.

    Returns:
      The number of the first row, and the rows, uint8 (H, W, 3).

    Raises:
      BadImage: they cannot be decoded, or the file is cut short.
    """
    options = decode_lib.jpeg_options(self.decoding.jpeg_dct)
    decoder = functools.partial(decode_lib.simplejpeg().decode_jpeg, **options)
    rows = jpeg_rows.decode_rows(self.data, self.layout, top, bottom, decoder)
    return (0, decode(self.data, self.decoding)) if rows is None else rows


def _late_jpeg(data: bytes, decoding: Decoding) -> LateJpeg | None:
  """A JPEG whose parts can be decoded alone; None for other images."""
  if decoding.jpeg_min_side or decode_lib.simplejpeg() is None:
    return None
  layout = jpeg_rows.layout(data)
  if layout is None:
    return None
  decode_lib.check_size((layout.width, layout.height), decoding.max_pixels)
  headers.check_bytes(data, layout.width, layout.height)
  exif = b'Exif' in data[: layout.body]
  if decoding.upright and exif and decode_lib.orientation(data) != 1:
    return None  # its rows are not those of the upright image
  return LateJpeg(data, layout, decoding)
