"""The metadata of weights, its version, and the metadata of vit_jax 0.1.0."""

import json

import pytest

from vit_jax.preprocessing import Preprocessing
from vit_jax.weights.metadata import WeightsMetadata

FULL = WeightsMetadata(
  model='vit_ti16',
  fields={'patch_size': 8, 'area_sizes': ((1, 2), (2, 2))},
  num_classes=2,
  classes=('cat', 'dog'),
  preprocessing=Preprocessing((16, 24), 0.875, 'bicubic', 'imagenet'),
  loss='sigmoid',
  average=True,
  data='0123',
  parameters=42,
  recipe={'run': {'steps': 3}},
)


@pytest.mark.parametrize(
  'record',
  [FULL, WeightsMetadata(), WeightsMetadata(image_size=(8, 12), classes=())],
)
def test_json_gives_the_record_back(record):
  text = json.dumps(record.to_json())
  assert WeightsMetadata.from_json(json.loads(text)) == record
  assert json.loads(text)['version'] == 1


def test_image_size_is_that_of_the_preprocessing():
  assert FULL.image_size == (16, 24)


def test_a_later_version_is_refused():
  with pytest.raises(ValueError, match='has version 2, and this vit_jax reads'):
    WeightsMetadata.from_json({'version': 2})


def test_a_run_of_version_0_1_0():
  record = WeightsMetadata.from_json(
    {
      'config': {
        'run': {'steps': 3},
        'model': {'name': 'vit_ti16', 'area_sizes': [[1, 2]]},
        'data': {'normalize': 'imagenet', 'image_size': 16},
        'loss': {'name': 'sigmoid'},
        'optim': {'ema': 0.9},
        'eval': {'ema': True, 'crop': 0.0, 'interpolation': 'bicubic'},
      },
      'classes': ['cat', 'dog'],
      'num_classes': 2,
      'data': '0123',
      'image_size': [16, 24],
      'parameters': 42,
    }
  )
  assert record.model == 'vit_ti16'
  assert record.fields == {'area_sizes': ((1, 2),)}
  assert record.classes == ('cat', 'dog') and record.num_classes == 2
  assert record.preprocessing == Preprocessing(
    (16, 24), None, 'bicubic', 'imagenet', upright=False
  )
  assert record.loss == 'sigmoid' and record.average
  assert record.data == '0123' and record.parameters == 42
  assert record.recipe['run'] == {'steps': 3}


def test_a_converted_file_of_version_0_1_0():
  """It has only those keys of a recipe that a classifier needs."""
  record = WeightsMetadata.from_json(
    {
      'config': {
        'model': {'name': 'cait_xxs24'},
        'data': {'normalize': 'imagenet'},
        'loss': {'name': 'softmax'},
        'eval': {'crop': 0.9, 'interpolation': 'bicubic'},
      },
      'classes': None,
      'num_classes': 1000,
      'image_size': [224, 224],
    }
  )
  assert record.preprocessing == Preprocessing(
    224, 0.9, 'bicubic', 'imagenet', upright=False
  )
  assert record.classes is None and not record.average
  assert record.recipe is None


def test_what_an_unversioned_file_lacks_stays_unknown():
  record = WeightsMetadata.from_json({'classes': ['a'], 'image_size': [8, 4]})
  assert record == WeightsMetadata(classes=('a',), image_size=(8, 4))
