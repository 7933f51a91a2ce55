"""Resizing as TensorFlow and Pillow do it."""

import importlib.util

import cv2
import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import make_image
from tests.helpers import ROOT
from vit_jax.data import pixels
from vit_jax.data.resize import resize, resize_float
from vit_jax.preprocessing import (
  INTERPOLATIONS,
  PILLOW_INTERPOLATIONS,
  TENSORFLOW_INTERPOLATIONS,
)


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('size', [(7, 9), (40, 33), (20, 24), (1, 1), (30, 12)])
def test_constants_stay(interpolation, size):
  image = np.full((20, 24, 3), 93, np.uint8)
  out = resize(image, size, interpolation)
  assert out.shape == (*size, 3) and out.dtype == np.uint8
  assert (out == 93).all()


@pytest.mark.parametrize('interpolation', TENSORFLOW_INTERPOLATIONS)
def test_roundings(interpolation):
  image = make_image(2)
  exact = resize(image, (9, 31), interpolation, 'none')
  assert exact.dtype == np.float32
  truncated = resize(image, (9, 31), interpolation, 'truncate')
  np.testing.assert_array_equal(
    truncated, np.clip(exact, 0, 255).astype(np.uint8)
  )
  rounded = resize(image, (9, 31), interpolation, 'nearest')
  # OpenCV computes 'bilinear' in integers, of limited precision.
  limit = 0.8 if interpolation == 'bilinear' else 0.501
  assert np.abs(rounded - np.clip(exact, 0, 255)).max() < limit
  same_size = resize(image, image.shape[:2], interpolation, 'none')
  assert same_size.dtype == np.float32
  np.testing.assert_array_equal(same_size, image)


def test_area_is_the_mean_of_what_is_covered():
  image = make_image(1, 20, 24)
  np.testing.assert_allclose(
    resize_float(image, (5, 6), 'area'),
    image.reshape(5, 4, 6, 4, 3).mean((1, 3)),
    rtol=1e-5,
  )
  # Enlarging by whole numbers repeats the pixels.
  np.testing.assert_allclose(
    resize_float(image, (40, 72), 'area'),
    image.repeat(2, 0).repeat(3, 1),
    rtol=1e-5,
  )
  # Both ways to shrink agree: OpenCV's, and the matrices, which are used as
  # soon as one side grows.
  shrunk = resize_float(image, (9, 24), 'area')
  enlarged = resize_float(image, (9, 48), 'area')
  np.testing.assert_allclose(shrunk.repeat(2, 1), enlarged, atol=1e-3)


def test_bilinear_antialias_is_pillows_up_to_rounding():
  image = make_image(3, 60, 50)
  ours = resize(image, (17, 13), 'tf_bilinear_antialias', 'none')
  pillow = resize(image, (17, 13), 'bilinear_antialias')
  assert np.abs(ours - pillow).max() < 1.1


def test_bilinear_is_opencvs():
  image = make_image(4, 30, 40)
  np.testing.assert_array_equal(
    resize(image, (13, 17)),
    cv2.resize(image, (17, 13), interpolation=cv2.INTER_LINEAR),
  )


def test_names():
  assert set(INTERPOLATIONS) == {
    *PILLOW_INTERPOLATIONS,
    *TENSORFLOW_INTERPOLATIONS,
  }
  for name in PILLOW_INTERPOLATIONS:
    assert resize(make_image(0), (4, 4), name).dtype == np.uint8


def test_tensorflows_methods():
  """Pixels that tf.image.resize computed, of every method."""
  with np.load(f'{ROOT}/tests/fixtures/tensorflow_resize.npz') as recorded:
    seen = set()
    for key in set(recorded.files) - {'image', 'version'}:
      name, size = key.split('.')
      size = tuple(map(int, size.split('x')))
      out = resize_float(recorded['image'], size, name)
      np.testing.assert_allclose(out, recorded[key], atol=1e-3, err_msg=key)
      seen.add(name)
  assert seen == set(TENSORFLOW_INTERPOLATIONS)


@pytest.fixture(params=['compiled', 'not compiled'])
def code(request, monkeypatch):
  """Both ways to resize."""
  if request.param == 'not compiled':
    monkeypatch.setattr(pixels, 'library', lambda: None)
  elif pixels.library() is None:
    pytest.skip('the package was installed without a C compiler')


def random_images(count):
  """Images with noise, their new sizes, in memory of all kinds."""
  rng = np.random.default_rng(7)
  for i in range(count):
    old, new = rng.integers(1, 150, (2, 2))
    image = rng.integers(0, 256, (*old, 3), np.uint8)
    if i % 3 == 1:
      image = image[old[0] // 3 :, : old[1] - old[1] // 3]  # rows with gaps
    if i % 3 == 2:
      image = image[::-1, ::-1]
    yield image, tuple(map(int, new))


def by_pillow(image, size, name):
  """Pillow's result along the rows, and then along the columns.

  Every version has the same result for one side alone.
  """
  kernel = {
    'bilinear_antialias': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'lanczos': Image.Resampling.LANCZOS,
    'hamming': Image.Resampling.HAMMING,
  }[name]
  wide = Image.fromarray(image).resize((size[1], len(image)), kernel)
  return np.asarray(wide.resize((size[1], size[0]), kernel))


@pytest.mark.usefixtures('code')
@pytest.mark.parametrize('name', PILLOW_INTERPOLATIONS)
def test_pillows_pixels(name):
  for image, size in random_images(60):
    want = by_pillow(image, size, name)
    np.testing.assert_array_equal(resize(image, size, name), want)
    out = np.zeros((*size, 3), np.uint8)
    assert resize(image, size, name, out=out) is out
    np.testing.assert_array_equal(out, want)


@pytest.mark.usefixtures('code')
@pytest.mark.parametrize(
  'name,rounding',
  [
    ('bilinear', 'nearest'),
    ('bilinear', 'truncate'),
    ('bilinear', 'none'),
    ('area', 'truncate'),
    ('bicubic', 'nearest'),
    ('lanczos', 'nearest'),
  ],
)
def test_mirrored(name, rounding):
  for image, size in random_images(12):
    for new in (size, image.shape[:2]):
      want = resize(image, new, name, rounding)[:, ::-1]
      out = np.zeros_like(want, order='C')
      got = resize(image, new, name, rounding, out, mirrored=True)
      assert got is out
      np.testing.assert_array_equal(out, want)
      np.testing.assert_array_equal(
        resize(image, new, name, rounding, mirrored=True), want
      )


@pytest.mark.usefixtures('code')
def test_a_high_image_is_resized_along_its_rows_first():
  """As by the versions of Pillow that the published recipes were run with."""
  image = np.random.default_rng(0).integers(0, 256, (303, 220, 3), np.uint8)
  np.testing.assert_array_equal(
    resize(image, (185, 185), 'bicubic'),
    by_pillow(image, (185, 185), 'bicubic'),
  )


def test_an_image_that_keeps_one_side():
  image = make_image(3, 60, 50)
  for name in PILLOW_INTERPOLATIONS:
    np.testing.assert_array_equal(
      resize(image, (17, 50), name), by_pillow(image, (17, 50), name)
    )
    np.testing.assert_array_equal(
      resize(image, (60, 13), name), by_pillow(image, (60, 13), name)
    )


@pytest.mark.usefixtures('code')
@pytest.mark.parametrize('kind', [np.uint8, np.float32])
def test_bilinear_is_tensorflows_to_the_last_bit(kind):
  with np.load(f'{ROOT}/tests/fixtures/tensorflow_resize.npz') as recorded:
    image = recorded['image'].astype(kind)
    for key in recorded.files:
      if key.startswith('bilinear.'):
        size = tuple(map(int, key.split('.')[1].split('x')))
        exact = resize(image, size, 'bilinear', 'none')
        np.testing.assert_array_equal(exact, recorded[key], err_msg=key)


def test_compiled_bilinear_is_numpys(monkeypatch):
  if pixels.library() is None:
    pytest.skip('the package was installed without a C compiler')
  cases = list(random_images(60))
  modes = ('none', np.float32), ('truncate', np.uint8)

  def all_resized():
    for image, size in cases:
      for rounding, kind in modes:
        out = np.zeros((*size, 3), kind)
        assert resize(image, size, 'bilinear', rounding, out) is out
        yield out
        yield resize(image, size, 'bilinear', rounding)

  compiled = list(all_resized())
  monkeypatch.setattr(pixels, 'library', lambda: None)
  for got, want in zip(compiled, all_resized(), strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_the_compiled_code_takes_only_what_it_can():
  """It would read or write other memory."""
  if pixels.library() is None:
    pytest.skip('the package was installed without a C compiler')
  line = pixels.Line(*(np.zeros(2, x) for x in 'iif'))
  image, out = np.zeros((3, 4, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
  for wrong in (image[..., :1], image.astype(float), image[0]):
    with pytest.raises(ValueError, match='not uint8'):
      pixels.bilinear(wrong, line, line, out)
  for wrong in (out[:1], out.astype(float), out.repeat(2, 1)[:, ::2]):
    with pytest.raises(ValueError, match='needs a contiguous array'):
      pixels.bilinear(image, line, line, wrong)


def test_a_package_without_compiled_code_says_so(monkeypatch, caplog):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert pixels.library.__wrapped__() is None
  assert 'apt-get install gcc' in caplog.text
