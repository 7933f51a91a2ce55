"""Resizing as TensorFlow and Pillow do it."""

import cv2
import numpy as np
from PIL import Image
import pytest

from tests.data.helpers import make_image
from tests.helpers import ROOT
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
  np.testing.assert_array_equal(
    pillow, Image.fromarray(image).resize((13, 17), Image.Resampling.BILINEAR)
  )


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


@pytest.mark.parametrize('name', ['lanczos', 'hamming'])
def test_pillows_other_kernels(name):
  image = make_image(3, 60, 50)
  np.testing.assert_array_equal(
    resize(image, (17, 13), name),
    Image.fromarray(image).resize((13, 17), Image.Resampling[name.upper()]),
  )
