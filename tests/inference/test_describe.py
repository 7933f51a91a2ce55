"""Descriptions of models and files: known counts, matching names."""

import jax
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.inference import describe
from vit_jax.models.catalog import PATH, catalog, catalog_text
from vit_jax.models.registry import list_models, model_info
from vit_jax.recipe import shared
from vit_jax.weights import WeightsError, WeightsMetadata, save_weights


@pytest.fixture(scope='module')
def vit_file(tmp_path_factory):
  """A file of vit_mu16 for 32 px with seven classes, without metadata."""
  model = create_model('vit_mu16', 7)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False)
  )
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  path = tmp_path_factory.mktemp('files') / 'mu16.npz'
  save_weights(variables, model, path)
  return path


def test_a_model_of_known_size():
  """The counts of a ViT from its sizes, as in the paper's table 1."""
  width, depth, mlp, patch, classes = 32, 2, 64, 8, 10
  model = describe.describe_model(
    'vit_ti16',
    image_size=(16, 24),
    num_classes=classes,
    fields=shared.small_fields('vit'),
  )
  tokens = 2 * 3 + 1
  block = 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width
  assert model['parameters'] == (
    (3 * patch**2 + 1) * width  # patch embedding
    + width  # class token
    + tokens * width  # position table
    + depth * block
    + 2 * width  # last norm
    + (width + 1) * classes
  )
  assert model['gmacs'] * 1e9 == pytest.approx(
    (tokens - 1) * 3 * patch**2 * width
    + depth
    * (tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width)
    + width * classes
  )
  assert model['image_size'] == [16, 24]
  assert model['statistics'] == 0 and model['areas'] == []
  assert sum(x['size'] for x in model['layers']) == model['parameters']


def test_a_scanned_model_counts_as_much():
  model = create_model('vit_ti16', 10, **shared.small_fields('vit'))
  parameters, macs = describe.measure(model, (32, 32))
  described = describe.describe_model(
    'vit_ti16', image_size=32, num_classes=10, fields=shared.small_fields('vit')
  )
  assert parameters == described['parameters']
  assert macs / 1e9 == described['gmacs']


def test_statistics_are_not_parameters():
  model = describe.describe_model('ceit_t', image_size=32, fields=dict(depth=1))
  names = [x['name'] for x in model['layers']]
  assert model['statistics'] > 0
  assert sum(n.startswith('batch_stats/') for n in names) > 0
  assert model['parameters'] == sum(
    x['size']
    for x in model['layers']
    if not x['name'].startswith('batch_stats/')
  )


def test_rows_of_models():
  (row,) = describe.describe_models('vit_ti16')
  assert row['name'] == 'vit_ti16' and row['parameters'] == 5_717_416
  assert row['image_size'] == [224, 224]


def test_a_file_without_metadata_is_recognized(vit_file):
  file = describe.describe_file(vit_file)
  assert file['kind'] == 'npz' and file['model'] is None
  assert file['fits'] == ['vit_mu16']
  assert file['values'] == sum(x['size'] for x in file['tensors'])
  shapes = {x['name']: x['shape'] for x in file['tensors']}
  assert shapes['head/bias'] == [7]
  assert describe.describe_file(vit_file, model='vit_mu16')['fits'] == [
    'vit_mu16'
  ]
  with pytest.raises(WeightsError, match='vit_ti16|ViT'):
    describe.describe_file(vit_file, model='vit_ti16')


def test_a_file_with_metadata_says_its_model(vit_file, tmp_path):
  model = create_model('vit_mu16', 7)
  path = tmp_path / 'named.npz'
  variables = {'params': {'head': {'kernel': np.zeros((2, 7), np.float32)}}}
  save_weights(variables, model, path, WeightsMetadata(model='vit_mu16'))
  file = describe.describe_file(path)
  assert file['model'] == 'vit_mu16' and file['fits'] == []


def test_the_table_of_models_is_that_of_the_registry():
  """What needs no computation, for all models; the counts of small ones."""
  assert sorted(catalog()) == list_models()
  for name, row in catalog().items():
    info = model_info(name)
    assert row['image_size'] == list(info.preprocessing.size), name
    assert row['released'] == list(info.released), name
    assert row['role'] == info.role, name
  for name in ('vit_mu16', 'aa_vit_ti16'):
    assert [catalog()[name]] == list(describe.describe_models(name))


@pytest.mark.slow
def test_the_table_of_models_is_that_of_the_computation():
  """After a change of a model: python -m vit_jax.inference.catalog."""
  assert catalog_text(describe.describe_models()) == PATH.read_text()
