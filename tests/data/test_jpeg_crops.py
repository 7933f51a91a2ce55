"""Boxes of JPEGs: the pixels of whole images, damage, without the library."""

from concurrent import futures

import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import assert_same, encode, make_image, recipe, take
from tests.data.test_jpeg_rows import _Listed
from vit_jax.data import jpeg_crops
from vit_jax.data.decode import BadImage, Decoding, decode
from vit_jax.data.late_jpeg import LateJpeg, decode_when_cropped

simplejpeg = pytest.importorskip('simplejpeg')

needs_library = pytest.mark.skipif(
  jpeg_crops.library() is None, reason='TurboJPEG 3 is not found'
)
_COLORS = ['444', '422', '420', '440', '411', 'Gray']


def _image(rng):
  """Noise, or a smooth image, of a random size."""
  height, width = (int(n) for n in rng.integers(1, 120, 2))
  coarse = int(rng.integers(1, 12))
  small = (height // coarse + 1, width // coarse + 1, 3)
  picture = Image.fromarray(rng.integers(0, 256, small, np.uint8))
  return np.asarray(picture.resize((width, height)))


def _encode(rng, image, colors):
  quality = int(rng.integers(30, 100))
  if colors == 'Gray':
    gray = np.ascontiguousarray(image[..., :1])
    return simplejpeg.encode_jpeg(gray, quality, 'GRAY', 'Gray')
  return simplejpeg.encode_jpeg(image, quality, 'RGB', colors)


def _encode_with_markers(rng, image, mode, **options):
  return encode(
    np.asarray(Image.fromarray(image).convert(mode)),
    quality=int(rng.integers(30, 100)),
    restart_marker_rows=1,
    **options,
  )


def _box(rng, height, width):
  top, left = int(rng.integers(height)), int(rng.integers(width))
  tall = int(rng.integers(1, height - top + 1))
  return top, left, tall, int(rng.integers(1, width - left + 1))


def _check_boxes(rng, data, dct):
  whole = decode(data, Decoding(dct))
  late = decode_when_cropped(data, Decoding(dct))
  assert isinstance(late, LateJpeg)
  for _ in range(6):
    box = top, left, height, width = _box(rng, *whole.shape[:2])
    np.testing.assert_array_equal(
      late.cut(box), whole[top : top + height, left : left + width], str(box)
    )


@pytest.fixture
def decoded(monkeypatch):
  """Whether each box was decoded by the library, in their order."""
  results, decode_box = [], jpeg_crops.decode_box

  def spy(*arguments, **options):
    pixels = decode_box(*arguments, **options)
    results.append(pixels is not None)
    return pixels

  monkeypatch.setattr(jpeg_crops, 'decode_box', spy)
  return results


@pytest.fixture
def no_library(monkeypatch):
  monkeypatch.setattr(jpeg_crops, 'library', lambda: None)


@needs_library
@pytest.mark.parametrize('dct', ['accurate', 'fast'])
@pytest.mark.parametrize('colors', _COLORS)
def test_a_box_has_the_pixels_of_the_whole_image(decoded, colors, dct):
  rng = np.random.default_rng(_COLORS.index(colors))
  for _ in range(40):
    _check_boxes(rng, _encode(rng, _image(rng), colors), dct)
  assert len(decoded) == 240 and all(decoded)


@needs_library
@pytest.mark.parametrize('dct', ['accurate', 'fast'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('subsampling', [0, 1, 2])
def test_a_box_between_restart_markers(decoded, subsampling, mode, dct):
  rng = np.random.default_rng(subsampling)
  options = {'subsampling': subsampling} if mode == 'RGB' else {}
  for _ in range(20):
    data = _encode_with_markers(rng, _image(rng), mode, **options)
    _check_boxes(rng, data, dct)
  assert len(decoded) == 120 and all(decoded)


@pytest.mark.parametrize('colors', _COLORS)
def test_a_box_without_the_library(no_library, colors):
  rng = np.random.default_rng(_COLORS.index(colors))
  for _ in range(10):
    _check_boxes(rng, _encode(rng, _image(rng), colors), 'fast')


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}])
@pytest.mark.parametrize('removed', [2, 3000])
def test_a_file_that_is_cut_short_is_bad_wherever_the_box_is(options, removed):
  image = np.random.default_rng(0).integers(0, 256, (83, 61, 3), np.uint8)
  late = decode_when_cropped(encode(image, **options)[:-removed])
  with pytest.raises(BadImage):
    late.cut((0, 0, 8, 8))


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}])
def test_a_damaged_box_is_that_of_the_whole_image(options):
  """Or nothing, where the whole image cannot be decoded."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (83, 61, 3), np.uint8)
  sound = encode(image, **options)
  body = sound.index(b'\xff\xda') + 20
  for _ in range(60):
    data = bytearray(sound)
    at = int(rng.integers(body, len(data) - 2))
    data[at : at + 2] = rng.integers(0, 256, 2, np.uint8).tobytes()
    late = decode_when_cropped(bytes(data))
    try:
      whole = decode(bytes(data))
    except BadImage:
      with pytest.raises(BadImage):
        late.cut((0, 3, 83, 50))
    else:
      np.testing.assert_array_equal(late.cut((0, 3, 83, 50)), whole[:, 3:53])


@pytest.mark.parametrize(
  'keys',
  [
    {'crop_sampling': 'height', 'rounding': 'truncate', 'jpeg_dct': 'fast'},
    {'interpolation': 'bicubic', 'randaugment': 'rand-m9'},
    {'crop': 'pad_crop', 'pad': 3, 'image_size': 24},
  ],
)
def test_the_stream_is_the_same_without_the_library(monkeypatch, keys):
  size = (24, 24) if keys.get('crop') == 'pad_crop' else (40, 50)
  images = [encode(make_image(i, *size)) for i in range(12)]
  images[3] = images[3][:400]  # replaced by the next, in both streams
  config = recipe(max_bad_fraction=0.2, **keys)
  usual = take(3, _Listed(images, True), config)
  monkeypatch.setattr(jpeg_crops, 'library', lambda: None)
  assert_same(usual, take(3, _Listed(images, True), config))


@needs_library
def test_threads_have_decoders_of_their_own():
  rng = np.random.default_rng(0)
  files = [_encode(rng, _image(rng), '420') for _ in range(30)] * 4
  with futures.ThreadPoolExecutor(4) as threads:
    for data, pixels in zip(files, threads.map(_whole_box, files)):
      np.testing.assert_array_equal(pixels, decode(data))


def _whole_box(data):
  late = decode_when_cropped(data)
  return late.cut((0, 0, *late.shape[:2]))


@pytest.mark.parametrize(
  'paths', [[], ['no such library'], ['libc.so.6']], ids=str
)
def test_a_library_that_is_missing_or_older_is_not_used(monkeypatch, paths):
  # The library of C lacks the functions, as version 2 of TurboJPEG does.
  monkeypatch.setattr(jpeg_crops, '_paths', lambda: paths)
  assert jpeg_crops.library.__wrapped__() is None
