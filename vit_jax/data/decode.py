"""Encoded images to arrays of pixels: the one way, for every reader.

`decode` reads the raster formats that are listed here, and no others: Pillow
on its own would hand an EPS file to Ghostscript, whatever its name. The size in
the header is read before any pixel is, so a small file that claims a huge image
costs nothing. Every failure, of any library, is a `BadImage`.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vit_jax.data import headers
from vit_jax.data.headers import BadImage

cv2.setNumThreads(0)  # several images are decoded at once, each by one thread
# `decode` compares the size with `Decoding.max_pixels`, which the user can
# raise. Pillow's own limit could not be raised with it.
Image.MAX_IMAGE_PIXELS = None

JPEG_DCT = ('accurate', 'fast')
# 134 million pixels, which take 400 MB: more than the cameras of phones make.
MAX_PIXELS = 2**27

# Resizing the shorter side of a longer strip would need more memory than any
# image that is allowed.
_MOST_ELONGATED = 1000

# The suffixes of the formats that are decoded, by the names that Pillow has for
# the formats. 'MPO' is a JPEG with further images, as many phones write.
_SUFFIXES = {
  'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
  'MPO': (),
  'PNG': ('.png',),
  'WEBP': ('.webp',),
  'BMP': ('.bmp', '.dib'),
  'GIF': ('.gif',),
  'TIFF': ('.tif', '.tiff'),
  'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
  'JPEG2000': ('.jp2', '.j2k'),
  'AVIF': ('.avif',),
  'HEIF': ('.heic', '.heif'),
}
# The packages that read a format, where Pillow alone does not.
_PLUGINS = {'AVIF': 'pillow-avif-plugin', 'HEIF': 'pillow-heif'}
_OPENCV = ('JPEG', 'MPO', 'PNG', 'WEBP')  # it is faster there
ORIENTATION = 0x0112  # the EXIF tag
# The EXIF orientation of an image to the function that turns it upright.
_TURNS = {
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.transpose(1, 0, 2),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
  8: lambda x: np.rot90(x),
}


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How the bytes of an image become pixels.

  Attributes:
    jpeg_dct: the inverse cosine transform of JPEGs. 'accurate' is the integer
      transform that OpenCV and Pillow use. 'fast' is the approximate one that
      TensorFlow uses by default, and so Google's recipes; pixels differ by up
      to 8 of 255, by 1 on average. It needs the package simplejpeg.
    upright: turn the image as its EXIF orientation says. TIFF files are always
      turned, because Pillow does it by itself.
    max_pixels: larger images are bad images, which are not decoded.
  """

  jpeg_dct: str = 'accurate'
  upright: bool = True
  max_pixels: int = MAX_PIXELS


DEFAULT_DECODING = Decoding()


def decode(
  data: bytes | np.ndarray, decoding: Decoding = DEFAULT_DECODING
) -> np.ndarray:
  """Decodes an image; arrays are returned as they are.

  Transparency is dropped, of 16-bit values the high byte is kept, and of an
  animation the first image is taken. Gray values that are signed, of 32 bits or
  floats have no known range, and are refused.

  Args:
    data: bytes of a file in one of the formats of `image_suffixes`, or uint8
      (H, W, 3).
    decoding: how.

  Returns:
    uint8 (H, W, 3), RGB.

  Raises:
    BadImage: the bytes are not such an image, are cut short, or have more
      pixels than allowed.
  """
  if isinstance(data, np.ndarray):
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
      raise BadImage(
        f'an image array must be uint8 (H, W, 3), not {data.dtype} {data.shape}'
      )
    return data
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      _check_size(image.size, decoding.max_pixels)
      headers.check(data, image, decoding.max_pixels)
      pixels = _decode_fast(data, image.format, decoding.jpeg_dct)
      if pixels is None:
        # Pillow reads a few files that OpenCV does not, and says what is wrong
        # with the others. It is asked for the orientation after decoding,
        # because it turns some formats by itself.
        pixels = _pixels(image)
      return _turned(pixels, image) if decoding.upright else pixels
  except BadImage:
    raise
  except Exception as e:  # the libraries raise many types on broken files
    raise BadImage(_reason(data, e)) from e


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
  width, height = size
  if width * height > max_pixels:
    raise BadImage(
      f'{width} x {height} pixels are more than the limit of {max_pixels:,} '
      '(max_pixels)'
    )
  if max(size) > _MOST_ELONGATED * max(1, min(size)):
    raise BadImage(
      f'{width} x {height} pixels: one side is more than {_MOST_ELONGATED} '
      'times the other'
    )


def _decode_fast(
  data: bytes, kind: str | None, jpeg_dct: str
) -> np.ndarray | None:
  """Pixels as simplejpeg or OpenCV gives them; None where that fails."""
  if kind not in _OPENCV:
    return None
  if jpeg_dct == 'fast' and kind in ('JPEG', 'MPO'):
    image = _decode_fast_dct(data)
    if image is not None:
      return image
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  with contextlib.suppress(cv2.error):
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  return None


def _decode_fast_dct(data: bytes) -> np.ndarray | None:
  """A JPEG as TensorFlow decodes it by default; None where that fails."""
  import simplejpeg  # pyright: ignore[reportMissingImports]

  try:
    return simplejpeg.decode_jpeg(data, 'RGB', fastdct=True, fastupsample=False)
  except ValueError:  # CMYK, or a broken file: the other decoders decide
    return None


def _pixels(image: Image.Image) -> np.ndarray:
  """An open image as uint8 (H, W, 3)."""
  # Pillow has 16-bit values of these two formats as 32-bit integers.
  wide = image.mode == 'I' and image.format in ('PPM', 'PNG')
  if wide or image.mode.startswith('I;16'):
    gray = (np.asarray(image) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
  if image.mode in ('I', 'F'):  # Pillow would cut all values at 255
    kind = 'signed or 32-bit integers' if image.mode == 'I' else 'floats'
    raise BadImage(
      f'its pixels are {kind}, whose black and white are not known: save it '
      'with unsigned values of 8 or 16 bits'
    )
  return np.array(image.convert('RGB'))


def _turned(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
  """The pixels upright, by the EXIF orientation of an open image."""
  turn = _TURNS.get(_orientation(image))
  return np.ascontiguousarray(turn(pixels)) if turn else pixels


def orientation(data: bytes) -> int:
  """The EXIF orientation, 1 to 8, of what `decode` returns without `upright`.

  It is 1, upright, where none can be read.
  """
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      # Pillow turns TIFF files upright by itself.
      return 1 if image.format == 'TIFF' else _orientation(image)
  except Exception:  # the libraries raise many types on broken files
    return 1


def _orientation(image: Image.Image) -> int:
  try:
    value = image.getexif().get(ORIENTATION, 1)
  except Exception:  # damaged EXIF data says nothing; the pixels are sound
    return 1
  return value if value in _TURNS else 1


def _reason(data: bytes, error: Exception) -> str:
  """Why bytes are a bad image, without the address of Pillow's buffer."""
  if not data:
    return 'the file is empty'
  if data[4:8] == b'ftyp':  # the container of HEIC and AVIF files
    for kind, brands in (('HEIF', b'heic heix hevc mif1'), ('AVIF', b'avif')):
      if data[8:12] in brands and kind not in _formats():
        return f'{kind} files need a plugin: pip install {_PLUGINS[kind]}'
  if isinstance(error, Image.UnidentifiedImageError):
    return 'not an image in a format that is read: ' + ', '.join(
      kind for kind in _formats() if kind != 'MPO'
    )
  return str(error).split('\n')[0] or type(error).__name__


@functools.cache
def _formats() -> tuple[str, ...]:
  """The formats that this installation decodes, by Pillow's names."""
  Image.preinit()
  for name in ('WebP', 'Tiff', 'Mpo', 'Jpeg2K', 'Avif'):
    with contextlib.suppress(ImportError):
      importlib.import_module(f'PIL.{name}ImagePlugin')
  plugins: Any = None
  with contextlib.suppress(ImportError):
    plugins = importlib.import_module('pillow_heif')
    plugins.register_heif_opener()
  if 'AVIF' not in Image.OPEN:
    with contextlib.suppress(ImportError):
      importlib.import_module('pillow_avif')
  return tuple(kind for kind in _SUFFIXES if kind in Image.OPEN)


@functools.cache
def image_suffixes() -> tuple[str, ...]:
  """Suffixes, in lower case, of the files that are taken for images."""
  return tuple(x for kind in _formats() for x in _SUFFIXES[kind])


def missing_plugin(suffix: str) -> str:
  """The package that would read files of this suffix; '' if there is none."""
  for kind, package in _PLUGINS.items():
    if suffix.lower() in _SUFFIXES[kind] and kind not in _formats():
      return package
  return ''


def check_jpeg_dct(jpeg_dct: str) -> None:
  """Raises ValueError unless `decode` can decode JPEGs in this way here."""
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
