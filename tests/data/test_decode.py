"""Decoding: all formats, orientation, broken and hostile images."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
from PIL import Image, ImageOps
import pytest

from tests.data.helpers import encode, make_image
from vit_jax.data import decode as decode_lib
from vit_jax.data.decode import (
  BadImage,
  Decoding,
  check_jpeg_dct,
  decode,
)


@pytest.mark.parametrize(
  'mode,kind,options',
  [
    ('RGB', 'JPEG', {}),
    ('L', 'JPEG', {}),
    ('RGB', 'PNG', {}),
    ('RGB', 'JPEG', {'progressive': True, 'subsampling': 2}),
    ('RGBA', 'PNG', {}),
    ('P', 'PNG', {}),
    ('LA', 'PNG', {}),
    ('1', 'PNG', {}),
    ('RGB', 'WEBP', {}),
    ('I;16', 'PNG', {}),
  ],
)
def test_all_decoders_give_the_same_pixels(mode, kind, options, monkeypatch):
  array = make_image(5, 37, 51)
  image = (
    Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    if mode == 'I;16'
    else Image.fromarray(array).convert(mode)
  )
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  pixels = decode(buffer.getvalue())
  monkeypatch.setattr(decode_lib, 'simplejpeg', lambda: None)
  np.testing.assert_array_equal(decode(buffer.getvalue()), pixels)
  monkeypatch.setattr(decode_lib, '_OPENCV', ())
  np.testing.assert_array_equal(decode(buffer.getvalue()), pixels)


@pytest.mark.parametrize(
  'min_side, shape',
  [(0, (75, 102)), (38, (75, 102)), (37, (38, 51)), (18, (19, 26))],
)
@pytest.mark.parametrize('subsampling', [0, 2])
def test_large_jpegs_are_decoded_small(
  min_side, shape, subsampling, monkeypatch
):
  data = encode(make_image(5, 75, 102), 'JPEG', subsampling=subsampling)
  small = decode(data, Decoding(jpeg_min_side=min_side))
  assert small.shape == (*shape, 3)
  monkeypatch.setattr(decode_lib, 'simplejpeg', lambda: None)
  for opencv in (decode_lib._OPENCV, ()):
    monkeypatch.setattr(decode_lib, '_OPENCV', opencv)
    again = decode(data, Decoding(jpeg_min_side=min_side))
    np.testing.assert_array_equal(again, small)
  png = encode(make_image(5, 75, 102), 'PNG')
  assert decode(png, Decoding(jpeg_min_side=18)).shape == (75, 102, 3)


class _Simplejpeg:
  """Stands in for the package: gray pixels, or an error for some files."""

  def __init__(self, refuses=False):
    self.refuses, self.calls = refuses, 0

  def decode_jpeg(self, data, colorspace, **options):
    self.calls += 1
    if self.refuses:
      raise ValueError('not for me')
    assert options['fastdct'] is False and options['fastupsample'] is False
    return np.full((9, 9, 3), 77, np.uint8)


def test_simplejpeg_comes_before_opencv_and_pillow(monkeypatch):
  jpeg, png = (encode(make_image(3), kind) for kind in ('JPEG', 'PNG'))
  pixels = decode(jpeg)
  tried = []
  imdecode = decode_lib.cv2.imdecode
  monkeypatch.setattr(
    decode_lib.cv2, 'imdecode', lambda *x: tried.append(1) or imdecode(*x)
  )
  for package, calls in (
    (_Simplejpeg(), 0),
    (_Simplejpeg(refuses=True), 1),
    (None, 1),
  ):
    monkeypatch.setattr(decode_lib, 'simplejpeg', lambda p=package: p)
    tried.clear()
    if calls:
      np.testing.assert_array_equal(decode(jpeg), pixels)
    else:
      assert (decode(jpeg) == 77).all()
    assert len(tried) == calls
    assert package is None or package.calls == 1
    np.testing.assert_array_equal(decode(png), make_image(3))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'AVIF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright_unless_the_pipeline_ignores_it(kind, orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  data = encode(make_image(0), kind, exif=exif, quality=95)
  with Image.open(io.BytesIO(data)) as image:
    stored = np.array(image.convert('RGB'))
    upright = np.array(ImageOps.exif_transpose(image).convert('RGB'))
  np.testing.assert_array_equal(decode(data), upright)
  np.testing.assert_array_equal(decode(data, Decoding(upright=False)), stored)
  assert decode_lib.orientation(data) == orientation


@pytest.mark.parametrize('exif', [b'', b'\xff' * 12, b'II*\0\xff\xff\xff\x7f'])
@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_damaged_exif_data_is_no_orientation(exif):
  data = encode(make_image(0), exif=b'Exif\0\0' + exif)
  assert decode(data).shape == (20, 24, 3)


@pytest.mark.parametrize('kind', ['BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000'])
def test_other_raster_formats_are_read(kind):
  image = make_image(3)
  got = decode(encode(image, kind))
  assert got.shape == image.shape and got.dtype == np.uint8
  if kind in ('BMP', 'TIFF', 'PPM'):
    np.testing.assert_array_equal(got, image)


def tiff(values, sample_format):
  """A TIFF file of gray values as they are in memory."""
  height, width = values.shape
  data = values.tobytes()
  bits = 8 * values.itemsize
  tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1)]
  tags += [(273, 8), (277, 1), (278, height), (279, len(data))]
  tags += [(339, sample_format)]
  fields = b''.join(struct.pack('<HHII', k, 4, 1, x) for k, x in tags)
  directory = struct.pack('<H', len(tags)) + fields + bytes(4)
  return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + directory


WIDE = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
  'data',
  [
    b'P5\n16 16\n65535\n' + WIDE.astype('>u2').tobytes(),
    b'P2\n16 16\n65535\n' + ' '.join(map(str, WIDE.ravel())).encode(),
    tiff(WIDE, 1),
    encode(WIDE, 'TIFF'),
    encode(WIDE, 'PNG'),
    encode(WIDE, 'JPEG2000'),
  ],
  ids=['PGM', 'PGM as text', 'TIFF', 'Pillow TIFF', 'PNG', 'JPEG2000'],
)
def test_of_16_bits_the_high_byte_is_kept(data):
  np.testing.assert_array_equal(decode(data)[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize(
  'data',
  [
    tiff(WIDE.astype(np.int32), 2),
    tiff(WIDE.astype(np.uint32), 1),
    tiff(WIDE.astype(np.int16), 2),
    tiff((WIDE / 65535).astype(np.float32), 3),
    tiff(WIDE / 65535, 3),
    b'Pf\n16 16\n-1.0\n' + (WIDE / 65535).astype(np.float32).tobytes(),
  ],
  ids=['i4', 'u4', 'i2', 'f4', 'f8', 'PFM'],
)
def test_gray_values_without_a_known_range_are_refused(data):
  """Pillow would cut them at 255, so that the image is white or black."""
  with pytest.raises(
    BadImage, match='black and white|not an image in a format'
  ):
    decode(data)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_tiff_files_are_upright(orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  image = make_image(0)
  upright = ImageOps.exif_transpose(
    Image.open(io.BytesIO(encode(image, 'PNG', exif=exif)))
  )
  np.testing.assert_array_equal(
    decode(encode(image, 'TIFF', exif=exif)), np.asarray(upright)
  )


def claim(kind, width, height):
  """A small file whose header claims another size."""
  data = bytearray(encode(make_image(0), kind))
  if kind == 'PNG':
    data[16:24] = struct.pack('>II', width, height)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  else:
    start = data.index(b'\xff\xc0')
    data[start + 5 : start + 9] = struct.pack('>HH', height, width)
  return bytes(data)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('side', [12_000, 40_000])
def test_a_huge_size_in_a_header_is_a_bad_image(kind, side):
  tracemalloc.start()
  with pytest.raises(BadImage, match=f'{side} x {side} pixels are more than'):
    decode(claim(kind, side, side))
  assert tracemalloc.get_traced_memory()[1] < 10e6
  tracemalloc.stop()


def test_the_limit_on_pixels_can_be_raised_and_lowered():
  data = encode(make_image(0))
  with pytest.raises(BadImage, match='24 x 20 pixels .* limit of 479'):
    decode(data, Decoding(max_pixels=479))
  assert decode(data, Decoding(max_pixels=480)).shape == (20, 24, 3)


def test_any_error_of_a_library_is_a_bad_image(monkeypatch):
  def fail(*unused):
    raise decode_lib.cv2.error('OpenCV(5.0.0) an assertion failed')

  monkeypatch.setattr(decode_lib.cv2, 'imdecode', fail)
  image = make_image(3)
  np.testing.assert_array_equal(decode(encode(image, 'PNG')), image)  # Pillow
  with pytest.raises(BadImage):
    decode(encode(image, 'PNG')[:-60])

  def no_memory(*unused):
    raise MemoryError('cannot allocate')

  monkeypatch.setattr(decode_lib, '_pixels', no_memory)
  with pytest.raises(BadImage, match='cannot allocate'):
    decode(encode(image, 'BMP'))


def test_postscript_is_never_run(monkeypatch):
  """Pillow alone would start Ghostscript for it, under any name."""

  def run(*unused, **options):
    raise AssertionError('a program was started')

  monkeypatch.setattr(subprocess, 'Popen', run)
  eps = io.BytesIO()
  Image.fromarray(make_image(0)).save(eps, 'EPS')
  for data in (eps.getvalue(), b'%PDF-1.4', b'<svg></svg>'):
    with pytest.raises(BadImage, match='not an image in a format that is read'):
      decode(data)


def test_heic_names_its_plugin():
  if 'HEIF' in decode_lib._formats():
    pytest.skip('the plugin is installed')
  with pytest.raises(BadImage, match='pip install pillow-heif'):
    decode(b'\0\0\0\x18ftypheic' + bytes(100))
  assert decode_lib.missing_plugin('.HEIC') == 'pillow-heif'
  assert decode_lib.missing_plugin('.jpg') == ''


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'not an image',
    encode(make_image(0))[:-40],
    encode(make_image(0), 'PNG')[:-60],
    encode(make_image(0))[:30],
  ],
)
def test_broken_images(data):
  with pytest.raises(BadImage):
    decode(data)


def test_fast_cosine_transform():
  """The pixels of TensorFlow's default decoder, recorded in the fixture."""
  pytest.importorskip('simplejpeg')
  with np.load('tests/fixtures/parity/preprocess_google.npz') as z:
    for name in ('a', 'b'):
      data = z[f'in/{name}.jpeg'].tobytes()
      np.testing.assert_array_equal(
        decode(data, Decoding('fast')), z[f'out/decode.{name}']
      )
      np.testing.assert_array_equal(
        decode(data), z[f'out/decode_precise.{name}']
      )


def test_fast_cosine_transform_leaves_other_files_alone(monkeypatch):
  png = encode(make_image(3), 'PNG')
  np.testing.assert_array_equal(decode(png, Decoding('fast')), make_image(3))
  # simplejpeg refuses CMYK and broken files: the other decoders decide.
  monkeypatch.setattr(decode_lib, '_decode_jpeg', lambda *unused: None)
  jpeg = encode(make_image(3))
  np.testing.assert_array_equal(decode(jpeg, Decoding('fast')), decode(jpeg))
  with pytest.raises(BadImage):
    decode(jpeg[:-40], Decoding('fast'))


def test_check_jpeg_dct(monkeypatch):
  monkeypatch.setattr(
    decode_lib, 'simplejpeg', decode_lib.simplejpeg.__wrapped__
  )
  check_jpeg_dct('accurate')
  with pytest.raises(ValueError, match='must be one of accurate, fast'):
    check_jpeg_dct('quick')
  monkeypatch.setitem(sys.modules, 'simplejpeg', None)
  with pytest.raises(ValueError, match='pip install simplejpeg'):
    check_jpeg_dct('fast')
