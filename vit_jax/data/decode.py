"""Decodes JPEG, PNG and WebP images to arrays of pixels."""

import io

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # several images are decoded at once, each by one thread

JPEG_DCT = ('accurate', 'fast')


class BadImage(ValueError):
  """The bytes are not an image that can be decoded as a whole."""


def decode(data: bytes | np.ndarray, jpeg_dct: str = 'accurate') -> np.ndarray:
  """Decodes an image; arrays are returned as they are.

  EXIF orientation is ignored, an alpha channel is dropped, and 16-bit values
  are reduced to their high byte.

  Args:
    data: bytes of a JPEG, PNG or WebP file, or uint8 (H, W, 3).
    jpeg_dct: the inverse cosine transform of JPEGs. 'accurate' is the integer
      transform that OpenCV and Pillow use. 'fast' is the approximate one that
      TensorFlow uses by default, and with it Google's recipes; it needs the
      package simplejpeg. Pixels of the two differ by up to 8 of 255, by 1 on
      average.

  Returns:
    uint8 (H, W, 3), RGB.

  Raises:
    BadImage: the bytes are not an image, or are cut short.
  """
  if isinstance(data, np.ndarray):
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
      raise BadImage(
        f'an image array must be uint8 (H, W, 3), not {data.dtype} {data.shape}'
      )
    return data
  if jpeg_dct == 'fast' and data[:2] == b'\xff\xd8':
    image = _decode_fast_dct(data)
    if image is not None:
      return image
  if data:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is not None:
      return image
  # Pillow reads a few files that OpenCV does not, and says what is wrong with
  # the others.
  return decode_pillow(data)


def check_jpeg_dct(jpeg_dct: str) -> None:
  """Raises ValueError unless `decode` accepts `jpeg_dct` on this machine."""
  if jpeg_dct not in JPEG_DCT:
    raise ValueError(
      f'data.jpeg_dct={jpeg_dct!r}: must be one of {", ".join(JPEG_DCT)}'
    )
  if jpeg_dct == 'fast':
    try:
      import simplejpeg  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as e:
      raise ValueError(
        "data.jpeg_dct='fast' needs the package simplejpeg: "
        "pip install simplejpeg, or use data.jpeg_dct='accurate'"
      ) from e


def _decode_fast_dct(data: bytes) -> np.ndarray | None:
  """A JPEG as TensorFlow decodes it by default; None where that fails."""
  import simplejpeg  # pyright: ignore[reportMissingImports]

  try:
    return simplejpeg.decode_jpeg(data, 'RGB', fastdct=True, fastupsample=False)
  except ValueError:  # CMYK or a broken file: `decode` tries other decoders
    return None


def decode_pillow(data: bytes) -> np.ndarray:
  """Decodes with Pillow, to uint8 (H, W, 3); raises BadImage if it cannot."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      if image.mode.startswith('I;16'):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
      return np.array(image.convert('RGB'))
  except Exception as e:  # Pillow raises many types on broken files
    raise BadImage(str(e) or type(e).__name__) from e
