"""How an image is fed: one value, checked, through JSON and back."""

import json

import numpy as np
import pytest

from vit_jax.preprocessing import Preprocessing, as_size


def test_json_round_trip():
  value = Preprocessing((224, 160), 0.875, 'bicubic', 'imagenet')
  text = json.dumps(value.to_json())
  assert Preprocessing.from_json(json.loads(text)) == value
  assert hash(Preprocessing.from_json(json.loads(text))) == hash(value)
  assert Preprocessing.from_json({}) == Preprocessing()


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
