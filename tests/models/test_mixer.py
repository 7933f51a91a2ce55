"""MLP-Mixer: counts, scan, remat, drop path without rescaling, precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from vit_jax.models.mixer import Mixer, MixerBlock

TINY = dict(
  num_classes=5,
  patch_size=(4, 8),
  width=16,
  depth=3,
  tokens_mlp_dim=8,
  mlp_dim=24,
)


def apply(model, variables, images, train=False):
  rngs = {'dropout': jax.random.key(2)}
  return jax.jit(lambda v, x: model.apply(v, x, train=train, rngs=rngs))(
    variables, images
  )


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(3), (2, 16, 24, 3))


def test_outputs_jit_and_bfloat16(images):
  model = Mixer(**TINY)
  variables = random_variables(model, images)
  logits, out = apply(model, variables, images)
  chex.assert_shape(logits, (2, 5))
  chex.assert_shape(out['stem'], (2, 4, 3, 16))
  chex.assert_shape([out[f'block_{i:02d}'] for i in range(3)], (2, 12, 16))
  np.testing.assert_allclose(
    out['pre_logits'], out['tokens'].mean(1), atol=1e-6
  )
  eager, _ = model.apply(variables, images, train=False)
  np.testing.assert_allclose(eager, logits, atol=1e-5)

  low, low_out = apply(model.clone(dtype=jnp.bfloat16), variables, images)
  assert low.dtype == jnp.float32 and low_out['tokens'].dtype == jnp.float32
  assert low_out['block_00'].dtype == jnp.bfloat16
  np.testing.assert_allclose(low, logits, atol=0.1 * float(logits.std()) + 0.05)

  features, _ = apply(model.clone(num_classes=0), variables, images)
  np.testing.assert_allclose(features, out['pre_logits'], atol=1e-6)


def test_initial_logits_are_the_head_bias(images):
  model = Mixer(**TINY, head_bias=-6.9)
  variables = model.init(jax.random.key(0), images, train=False)
  logits, _ = apply(model, variables, images)
  np.testing.assert_array_equal(logits, np.full((2, 5), -6.9, np.float32))
  block = variables['params']['MixerBlock_0']
  assert jax.tree.map(jnp.shape, block['token_mixing']) == {
    'Dense_0': {'kernel': (12, 8), 'bias': (8,)},
    'Dense_1': {'kernel': (8, 12), 'bias': (12,)},
  }
  np.testing.assert_array_equal(block['channel_mixing']['Dense_0']['bias'], 0)


def test_drop_path_does_not_rescale():
  """Any of two branches can be dropped, and kept branches are not rescaled."""
  block = MixerBlock(tokens_mlp_dim=8, mlp_dim=24)
  x = jnp.broadcast_to(
    jax.random.normal(jax.random.key(0), (1, 6, 16)), (64, 6, 16)
  )
  variables = block.init(jax.random.key(1), x, 0.0, False)
  rngs = {'dropout': jax.random.key(2)}
  run = lambda v, rate: block.apply(v, x, rate, True, rngs=rngs)[0]

  def without(*names):  # a branch with zero weights adds nothing
    params = dict(variables['params'])
    for name in names:
      params[name] = jax.tree.map(jnp.zeros_like, params[name])
    return run({'params': params}, 0.0)[0]

  paths = jnp.stack(
    [
      without(),
      without('token_mixing'),
      without('channel_mixing'),
      without('token_mixing', 'channel_mixing'),
    ]
  )
  distance = jnp.abs(run(variables, 0.5)[:, None] - paths[None]).max((2, 3))
  assert float(distance.min(1).max()) < 1e-5
  assert set(np.asarray(distance.argmin(1))) == {0, 1, 2, 3}


def test_drop_path_is_linear_in_depth(images):
  """With rates 0, 1/2 and 1, the last block is the identity."""
  model = Mixer(**TINY, drop_path=1.0)
  variables = random_variables(model, images)
  _, whole = apply(model, variables, images)
  _, out = apply(model, variables, images, train=True)
  np.testing.assert_allclose(out['block_00'], whole['block_00'], atol=1e-6)
  np.testing.assert_array_equal(out['block_02'], out['block_01'])
  assert not np.allclose(whole['block_02'], whole['block_01'])
