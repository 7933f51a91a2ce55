"""Random boxes and cutting."""

import numpy as np
import pytest

from vit_jax.data import crops

ASPECT = (3 / 4, 4 / 3)


def boxes(sampler, height, width, area=(0.08, 1.0), aspect=ASPECT, n=2000):
  rng = np.random.default_rng(0)
  return np.array([sampler(rng, height, width, area, aspect) for _ in range(n)])


@pytest.mark.parametrize('sampling', ['area', 'height'])
def test_boxes_are_within_their_limits(sampling):
  top, left, h, w = boxes(crops.SAMPLERS[sampling], 300, 400).T
  assert top.min() >= 0 and (top + h).max() <= 300
  assert left.min() >= 0 and (left + w).max() <= 400
  assert 0.74 < (w / h).min() and (w / h).max() < 1.35
  area = h * w / 120_000
  assert 0.079 < area.min() < 0.12 and area.max() > 0.9


def test_what_is_uniform():
  shares = {}
  for sampling, sampler in crops.SAMPLERS.items():
    _, _, h, w = boxes(sampler, 375, 500, area=(0.05, 1.0)).T
    shares[sampling] = np.mean(h * w < 0.25 * 375 * 500)
  # A uniform height makes small boxes more frequent.
  assert 0.25 < shares['area'] < 0.31
  assert 0.39 < shares['height'] < 0.45


def test_offsets_at_the_upper_end():
  """TensorFlow never draws the largest offset, torchvision does."""
  touches = {}
  for sampling, sampler in crops.SAMPLERS.items():
    top, _, h, _ = boxes(sampler, 24, 24, n=1000).T
    touches[sampling] = ((top + h == 24) & (h < 24)).any()
  assert touches == {'area': True, 'height': False}


def test_what_never_fits():
  rng = np.random.default_rng(0)
  # The center, with the aspect ratio at its limit.
  assert crops.area_uniform_box(rng, 10, 100, (1, 1), ASPECT) == (0, 43, 10, 13)
  assert crops.area_uniform_box(rng, 100, 9, (1, 1), ASPECT) == (44, 0, 12, 9)
  # The whole image.
  assert crops.height_uniform_box(rng, 10, 100, (1, 1), ASPECT) == (
    0,
    0,
    10,
    100,
  )


def test_cut_fills_with_zero():
  image = np.full((4, 5, 3), 7, np.uint8)
  out = crops.cut(image, (-1, 3, 4, 4))
  assert out.shape == (4, 4, 3)
  assert (out[1:, :2] == 7).all() and out.sum() == 7 * 3 * 2 * 3
  np.testing.assert_array_equal(crops.cut(image, (0, 0, 4, 5)), image)
