"""The registry: names, nearest names, preprocessing, a user's module."""

import sys

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import registry
from vit_jax.models.registry import (
  create_model,
  list_models,
  load_module,
  model_info,
  register,
)
from vit_jax.preprocessing import Preprocessing

OWN = """
from flax import linen as nn
from vit_jax.models.registry import register

class Mean(nn.Module):
  num_classes: int = 10
  width: int = 4

  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Dense(self.width, name='embedding')(images).mean(axis=(1, 2))
    out = {'pre_logits': x}
    if self.num_classes:
      x = nn.Dense(self.num_classes, name='head')(x)
    return x, out

register('mean_w8', Mean, width=8)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  """A file my_own_models.py in the current directory."""
  (tmp_path / 'my_own_models.py').write_text(OWN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(registry, '_MODELS', dict(registry._MODELS))
  monkeypatch.setattr(sys, 'path', list(sys.path))
  yield 'my_own_models'
  sys.modules.pop('my_own_models', None)


def test_unknown_names_and_fields_name_the_nearest():
  with pytest.raises(ValueError, match='vit_b16'):
    create_model('vit_b_16')
  with pytest.raises(ValueError, match="no field 'patchsize'.*patch_size"):
    create_model('vit_b16', patchsize=8)


def test_patterns():
  assert 'vit_b16' in list_models('vit_b*')
  assert list_models('r50_*l*') == ['r50_vit_l16', 'r50_vit_l32']
  assert list_models('nothing') == []


def test_how_released_models_are_fed():
  google = Preprocessing((224, 224), None, interpolation='bilinear')
  assert model_info('vit_b16').preprocessing == google
  assert model_info('vit_s14_dinov2').preprocessing == Preprocessing(
    (518, 518), crop=1.0, interpolation='bicubic', normalize='imagenet'
  )
  assert model_info('volo_d5').preprocessing.crop == 1.15


def test_a_module_of_the_users_own(own_module):
  module = load_module(own_module)
  assert load_module(own_module) is module  # a second call imports nothing
  info = model_info('mean_w8')
  assert info.module is module.Mean and info.fields == {'width': 8}
  model = create_model('mean_w8', num_classes=3)
  images = jnp.ones((2, 8, 8, 3))
  variables = model.init(jax.random.key(0), images, train=False)
  logits, out = model.apply(variables, images, train=False)
  assert logits.shape == (2, 3) and out['pre_logits'].shape == (2, 8)


def test_a_module_that_cannot_be_imported(own_module, tmp_path):
  with pytest.raises(ValueError, match="module 'my_modles' cannot be imported"):
    load_module('my_modles')
  (tmp_path / 'my_own_models.py').write_text('import no_such_library')
  with pytest.raises(ModuleNotFoundError, match='no_such_library'):
    load_module(own_module)


def test_registering_checks_the_name_and_the_fields():
  with pytest.raises(ValueError, match="'vit_b16' is registered already, as V"):
    register('vit_b16', model_info('vit_b16').module)

  class Model(nn.Module):
    num_classes: int = 1000

    def __call__(self, images, *, train):
      return images, {}

  with pytest.raises(ValueError, match="no field 'width'"):
    register('new', Model, width=3)
  assert 'new' not in list_models()
