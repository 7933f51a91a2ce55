"""`Preprocessing`: checked values, and JSON."""

import json

import numpy as np
import pytest

from vit_jax.preprocessing import Preprocessing, as_size, normalization


def test_json_round_trip():
  value = Preprocessing((224, 160), 0.875, 'bicubic', 'imagenet')
  text = json.dumps(value.to_json())
  assert Preprocessing.from_json(json.loads(text)) == value
  assert hash(Preprocessing.from_json(json.loads(text))) == hash(value)
  # Version 0.1.0 ignored the orientation.
  assert Preprocessing.from_json({}) == Preprocessing(upright=False)


def test_a_size_is_height_and_width():
  assert as_size(224) == (224, 224) == as_size(np.int64(224))
  assert as_size([224, 160]) == as_size((224, 160)) == (224, 160)
  assert Preprocessing(size=32).size == (32, 32)
  for wrong in (0, -1, 2.5, '224', (1, 2, 3), (224, 0), (224.0, 1), None):
    with pytest.raises(ValueError, match='image size'):
      as_size(wrong)


def test_a_crop_is_none_or_a_positive_ratio():
  assert Preprocessing(crop=1.15).crop == 1.15  # VOLO pads
  assert Preprocessing(crop=1) == Preprocessing(crop=1.0)
  for wrong in (0, 0.0, -0.5, 'squash', float('nan'), float('inf'), True):
    with pytest.raises(ValueError, match='crop='):
      Preprocessing(crop=wrong)


@pytest.mark.parametrize(
  'values, word',
  [
    ({'interpolation': 'nearest'}, 'bilinear'),
    ({'normalize': 'none'}, 'imagenet'),
    ({'image_size': 3}, "'image_size'"),
  ],
)
def test_what_is_not_known_is_named(values, word):
  with pytest.raises(ValueError, match=word):
    Preprocessing.from_json(values)


def test_normalizations_with_numbers():
  np.testing.assert_allclose(
    normalization('range(-1,1)'), normalization('half')
  )
  np.testing.assert_allclose(
    normalization('range(0, 1)'), normalization('unit')
  )
  imagenet = 'mean_std(0.485,0.456,0.406,0.229,0.224,0.225)'
  np.testing.assert_allclose(normalization(imagenet), normalization('imagenet'))
  mean, std = normalization('range(-2,3)')
  ends = [(pixel - mean[0]) / std[0] for pixel in (0, 255)]
  np.testing.assert_allclose(ends, (-2, 3))
  assert Preprocessing(normalize='range(0,255)').normalize == 'range(0,255)'


@pytest.mark.parametrize(
  'style',
  [
    'whole',
    'range(1)',
    'range(1,1)',
    'range(a,b)',
    'range(0,inf)',
    'mean_std(0,0,0,1,1)',
    'mean_std(0,0,0,1,1,0)',
    'half(0,1)',
    'range(0,1',
  ],
)
def test_a_wrong_normalization_says_what_is_allowed(style):
  with pytest.raises(ValueError, match='normalize=.*imagenet.*range'):
    normalization(style)
