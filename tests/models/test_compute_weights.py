"""Weights that are converted once give the numbers of the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from vit_jax.inference.classifier import Classifier
from vit_jax.models.compute_weights import converted_weights
from vit_jax.models.registry import create_model, model_info
from vit_jax.recipe import shared


@pytest.mark.parametrize(
  ('name', 'family'), [('vit_ti16', 'vit'), ('mixer_s32', 'mixer')]
)
def test_logits_are_the_same(name, family):
  fields = {**shared.small_fields(family), 'dtype': 'bfloat16'}
  model = create_model(name, num_classes=5, **fields)
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype('f4')
  variables = random_variables(model, images)
  forward = lambda v, x: model.apply(v, x, train=False)[0]
  converted = converted_weights(forward, variables, images)
  types = {x.dtype.name for x in jax.tree.leaves(converted)}
  assert types == {'float32', 'bfloat16'}
  logits = [jax.jit(forward)(v, images) for v in (variables, converted)]
  np.testing.assert_array_equal(*logits)


def test_only_what_is_converted_everywhere():
  variables = {
    'converted': jnp.ones(2),
    'also used': jnp.ones(2),
    'two types': jnp.ones(2),
    'unused': jnp.ones(2),
    'an output': jnp.ones(2),
    'an integer': jnp.ones(2, jnp.int32),
  }

  def forward(v, x):
    small = {k: a.astype(jnp.bfloat16) for k, a in v.items() if k != 'unused'}
    wide = v['two types'].astype(jnp.float16).astype(jnp.float32)
    sums = sum(small.values()).astype(jnp.float32) + v['also used'] + wide
    return sums * x, v['an output']

  converted = converted_weights(forward, variables, jnp.ones(2))
  types = {k: x.dtype.name for k, x in converted.items()}
  assert types == {
    **{k: x.dtype.name for k, x in variables.items()},
    'converted': 'bfloat16',
    'an integer': 'bfloat16',
  }


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_classifier_converts_for_its_own_model(dtype):
  fields = {**shared.small_fields('vit'), 'dtype': dtype}
  model = create_model('vit_ti16', num_classes=5, **fields)
  preprocessing = dataclasses.replace(
    model_info('vit_ti16').preprocessing, size=(32, 32)
  )
  classifier = Classifier(
    name='vit_ti16',
    num_classes=5,
    preprocessing=preprocessing,
    model=model,
    variables=random_variables(model, np.zeros((1, 32, 32, 3), 'f4')),
  )
  head = classifier.on_device['params']['head']['kernel']
  block = classifier.on_device['params']['Transformer']['encoderblock_0']
  assert block['LayerNorm_0']['scale'].dtype == jnp.float32
  assert block['MlpBlock_0']['Dense_0']['kernel'].dtype == jnp.dtype(dtype)
  # The file that is written has what was loaded.
  kept = classifier.variables['params']['head']['kernel']
  assert kept.dtype == jnp.float32 and head.dtype.itemsize <= 4
  image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  (result,) = classifier.classify([image])
  logits = classifier.forward(
    classifier.variables, classifier.read_image(image)[None]
  )[0]
  best = jax.nn.softmax(logits[0]).max()
  found = result['predictions'][0]['probability']
  assert found == pytest.approx(float(best), rel=0.02)
