"""Encoded images to arrays of pixels: the one way, for every reader.

`decode` reads the raster formats that are listed here, and no others: Pillow
on its own would hand an EPS file to Ghostscript, whatever its name. The size in
the header is read before any pixel is, so a small file that claims a huge image
costs nothing. Every failure, of any library, is a `BadImage`.
"""

from collections.abc import Sequence
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
_JPEG = ('JPEG', 'MPO')
_OPENCV = (*_JPEG, 'PNG', 'WEBP')  # it is faster there than Pillow
# OpenCV's flags, by how much an image is made smaller. Its names for reduced
# colors would mean BGR.
_REDUCED = {
  reduce: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | flag
  for reduce, flag in (
    (1, 0),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
  )
}
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
      transform, for which simplejpeg, OpenCV and Pillow give the same pixels.
      'fast' is the approximate one that TensorFlow uses by default, and so
      Google's recipes; pixels differ by up to 8 of 255, by 1 on average. It
      needs the package simplejpeg.
    upright: turn the image as its EXIF orientation says. TIFF files are always
      turned, because Pillow does it by itself.
    max_pixels: larger images are bad images, which are not decoded.
    jpeg_min_side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if its
      shorter side keeps so many pixels. That is faster, and changes the pixels.
      0 decodes all images in full.
  """

  jpeg_dct: str = 'accurate'
  upright: bool = True
  max_pixels: int = MAX_PIXELS
  jpeg_min_side: int = 0


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
    uint8 (H, W, 3), RGB; smaller than the image with `jpeg_min_side`.

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
      check_size(image.size, decoding.max_pixels)
      headers.check(data, image, decoding.max_pixels)
      reduce = _reduction(image, decoding.jpeg_min_side)
      pixels = _decode_fast(data, image, decoding.jpeg_dct, reduce)
      if pixels is None:
        if reduce > 1:
          image.draft('RGB', (image.width // reduce, image.height // reduce))
        # Pillow reads a few files that OpenCV does not, and says what is wrong
        # with the others. It is asked for the orientation after decoding,
        # because it turns some formats by itself.
        pixels = _pixels(image)
      return _turned(pixels, image) if decoding.upright else pixels
  except BadImage:
    raise
  except Exception as e:  # the libraries raise many types on broken files
    raise BadImage(reason(data, e)) from e


def check_size(size: tuple[int, int], max_pixels: int) -> None:
  """Raises BadImage for a (width, height) beyond the limits."""
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


def _reduction(image: Image.Image, min_side: int) -> int:
  """1, 2, 4 or 8: by how much a JPEG is made smaller while it is decoded."""
  if not min_side or image.format not in _JPEG:
    return 1
  return max(n for n in _REDUCED if n == 1 or min(image.size) >= n * min_side)


def _decode_fast(
  data: bytes, image: Image.Image, jpeg_dct: str, reduce: int
) -> np.ndarray | None:
  """Pixels as simplejpeg or OpenCV gives them; None where both fail.

  simplejpeg is the faster one, where it is installed.
  """
  if image.format not in _OPENCV:
    return None
  if image.format in _JPEG:
    size = image.size if reduce > 1 else (0, 0)  # 0: in full
    pixels = _decode_jpeg(data, jpeg_dct, [-(-n // reduce) for n in size])
    if pixels is not None:
      return pixels
  with contextlib.suppress(cv2.error):
    return cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce])
  return None


@functools.cache
def simplejpeg() -> Any:
  """The package simplejpeg, or None if it is not installed."""
  with contextlib.suppress(ImportError):
    return importlib.import_module('simplejpeg')
  return None


def _decode_jpeg(
  data: bytes, jpeg_dct: str, at_least: Sequence[int]
) -> np.ndarray | None:
  """A JPEG by simplejpeg; None without it and for files that it refuses.

  Args:
    data: the bytes of the file.
    jpeg_dct: one of JPEG_DCT.
    at_least: the smallest (width, height) of the result; zeros for that of the
      image.
  """
  library = simplejpeg()
  if library is None:
    return None
  width, height = at_least
  try:
    return library.decode_jpeg(
      data,
      'RGB',
      **jpeg_options(jpeg_dct),
      min_width=width,
      min_height=height,
      min_factor=2,  # reductions to 7/8 and the like take longer than none
    )
  except ValueError:  # CMYK, or a broken file: the other decoders decide
    return None


def jpeg_options(jpeg_dct: str) -> dict[str, Any]:
  """The arguments of simplejpeg for one of JPEG_DCT."""
  return {'fastdct': jpeg_dct == 'fast', 'fastupsample': False}


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


def reason(data: bytes, error: Exception) -> str:
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
  if jpeg_dct == 'fast' and simplejpeg() is None:
    raise ValueError(
      "data.jpeg_dct='fast' needs the package simplejpeg: "
      "pip install simplejpeg, or use data.jpeg_dct='accurate'"
    )
