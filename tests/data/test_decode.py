"""Decoding: both decoders, broken images, the fast cosine transform."""

import io
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import encode, make_image
from vit_jax.data import decode as decode_lib
from vit_jax.data.decode import (
  BadImage,
  check_jpeg_dct,
  decode,
  decode_pillow,
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
def test_both_decoders_give_the_same_pixels(mode, kind, options):
  array = make_image(5, 37, 51)
  image = (
    Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    if mode == 'I;16'
    else Image.fromarray(array).convert(mode)
  )
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  np.testing.assert_array_equal(
    decode(buffer.getvalue()),
    decode_pillow(buffer.getvalue()),
  )


def test_orientation_is_ignored():
  exif = Image.Exif()
  exif[0x112] = 6  # rotated by 90 degrees
  data = encode(make_image(0), exif=exif)
  assert decode(data).shape == (20, 24, 3)
  assert decode_pillow(data).shape == (20, 24, 3)


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
  for function in (decode, decode_pillow):
    with pytest.raises(BadImage):
      function(data)


def test_fast_cosine_transform():
  """The pixels of TensorFlow's default decoder, recorded in the fixture."""
  pytest.importorskip('simplejpeg')
  with np.load('tests/fixtures/parity/preprocess_google.npz') as z:
    for name in ('a', 'b'):
      data = z[f'in/{name}.jpeg'].tobytes()
      np.testing.assert_array_equal(
        decode(data, 'fast'), z[f'out/decode.{name}']
      )
      np.testing.assert_array_equal(
        decode(data), z[f'out/decode_precise.{name}']
      )


def test_fast_cosine_transform_leaves_other_files_alone(monkeypatch):
  png = encode(make_image(3), 'PNG')
  np.testing.assert_array_equal(decode(png, 'fast'), make_image(3))
  # simplejpeg refuses CMYK and broken files: the other decoders decide.
  monkeypatch.setattr(decode_lib, '_decode_fast_dct', lambda data: None)
  jpeg = encode(make_image(3))
  np.testing.assert_array_equal(decode(jpeg, 'fast'), decode(jpeg))
  with pytest.raises(BadImage):
    decode(jpeg[:-40], 'fast')


def test_check_jpeg_dct(monkeypatch):
  check_jpeg_dct('accurate')
  with pytest.raises(ValueError, match='must be one of accurate, fast'):
    check_jpeg_dct('quick')
  monkeypatch.setitem(sys.modules, 'simplejpeg', None)
  with pytest.raises(ValueError, match='pip install simplejpeg'):
    check_jpeg_dct('fast')
