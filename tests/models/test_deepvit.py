"""DeepViT: sizes, re-attention, block adjustment, CNN stem, released names."""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.models import deepvit
from vit_jax.models.attention import MixHeads, attend
from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.weights import released_shapes

# {(name, image size): number of parameters, counted with the official code}
COUNTS = {
  ('deepvit_16', 224): 24_426_664,
  ('deepvit_24', 224): 36_261_448,
  ('deepvit_32', 224): 48_096_232,
  ('deepvit_s', 224): 27_312_632,
  ('deepvit_l', 224): 58_883_708,
  ('deepvit_l', 384): 59_043_308,
  ('deepvit_l408', 224): 55_636_016,
}


def tiny(**fields):
  return deepvit.DeepViT(
    **{
      **dict(
        num_classes=5, patch_size=8, width=12, depth=3, num_heads=3, mlp_dim=24
      ),
      **fields,
    }
  )


@functools.cache
def tiny_setup(**fields):
  images = np.random.default_rng(0).standard_normal((2, 16, 24, 3))
  images = jnp.asarray(images, jnp.float32)
  return images, random_variables(tiny(**fields), images)


def apply(variables, images, **fields):
  return jax.jit(functools.partial(tiny(**fields).apply, train=False))(
    variables, images
  )


def stacked(variables, blocks=3):
  """The variables of a scanned model, whose leading blocks are stacked."""
  result = {}
  for collection, tree in variables.items():
    tree = dict(tree)
    stack = [
      tree.pop(f'block_{i}') for i in range(blocks) if f'block_{i}' in tree
    ]
    if stack:
      tree['block'] = jax.tree.map(lambda *x: jnp.stack(x), *stack)
    result[collection] = tree
  return result


def test_registered():
  assert list_models('deepvit') == sorted({name for name, _ in COUNTS})
  info = model_info('deepvit_s')
  assert (
    info.preprocessing.normalize == 'half' and info.preprocessing.crop == 0.9
  )


@pytest.mark.parametrize(
  'name,depth,last,heads,width,cnn',
  [
    ('deepvit_16', 16, 16, 12, 384, False),
    ('deepvit_24', 24, 24, 12, 384, False),
    ('deepvit_32', 32, 32, 12, 384, False),
    ('deepvit_s', 16, 5, 12, 396, True),
    ('deepvit_l', 32, 12, 12, 420, True),
    ('deepvit_l408', 32, 12, 12, 408, True),
  ],
)
def test_stage_plan(name, depth, last, heads, width, cnn):
  assert (create_model(name).num_heads, create_model(name).width) == (
    heads,
    width,
  )
  model = create_model(name, width=12, mlp_dim=12, patch_size=8)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),
  )
  params = variables['params']
  assert sum(k.startswith('block_') for k in params) == depth
  assert [
    i for i in range(depth) if 'reattn' in params[f'block_{i}']['attn']
  ] == list(range(depth - last, depth))
  assert ('patch_embed' in params) == cnn


@pytest.mark.parametrize(
  'name,model',
  [
    ('dvit_deepvit_S', 'deepvit_s'),
    ('dvit_deepvit_patch16_224_re_attn_16b', 'deepvit_16'),
  ],
)
def test_released_names(name, model):
  got = released_shapes(create_model(model), 224, 'official')
  assert got == tsv_shapes(name)


class ReAttention(nn.Module):
  train: bool = False
  scale: float = 1.0
  bias: bool = True

  @nn.compact
  def __call__(self, q, k, v):
    return deepvit.re_attention(
      q, k, v, train=self.train, bias=self.bias, scale=self.scale
    )


def test_re_attention():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 4, 5))
  variables = ReAttention().init(jax.random.key(1), q, k, v)
  theta, norm = (variables['params'][n] for n in ('reattn', 'reattn_norm'))
  for (
    x
  ) in theta.values():  # PyTorch's default is U(-1/sqrt(heads), 1/sqrt(heads))
    assert 0.1 < np.abs(x).max() <= 0.5
  mean, std = np.arange(4.0), np.arange(1.0, 5.0)
  stats = {
    'mean': jnp.asarray(mean, jnp.float32),
    'var': jnp.asarray(std**2 - 1e-5, jnp.float32),
  }
  variables['batch_stats']['reattn_norm'] = stats
  y, maps = ReAttention(scale=0.5).apply(variables, q, k, v)

  _, probs = attend(q, k, v)
  kernel, bias = np.asarray(theta['kernel']), np.asarray(theta['bias'])
  mixed = np.stack(
    [
      sum(kernel[i, j] * probs[:, i] for i in range(4)) + bias[j]
      for j in range(4)
    ],
    1,
  )
  wide = lambda x: np.asarray(x).reshape(1, 4, 1, 1)
  mixed = (mixed - wide(mean)) / wide(std) * wide(norm['scale'])
  mixed = 0.5 * (mixed + wide(norm['bias']))
  chex.assert_trees_all_close(maps['softmax'], probs, atol=1e-6)
  np.testing.assert_allclose(maps['mixed'], mixed, atol=1e-5)
  np.testing.assert_allclose(
    y, np.einsum('bhts,bshk->bthk', mixed, v), atol=1e-5
  )

  plain = ReAttention(bias=False).init(jax.random.key(1), q, k, v)
  assert set(plain['params']['reattn']) == {
    'kernel'
  }  # the matrix of the paper has no bias


def test_re_attention_running_statistics():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 4, 5))
  variables = ReAttention().init(jax.random.key(1), q, k, v)
  (_, maps), new = ReAttention(train=True).apply(
    variables, q, k, v, mutable=['batch_stats']
  )
  # Normalized per head over batch, queries and keys (epsilon shrinks a bit).
  np.testing.assert_allclose(maps['mixed'].mean((0, 2, 3)), 0, atol=1e-5)
  mixed = MixHeads(4).apply(
    {'params': variables['params']['reattn']}, maps['softmax']
  )
  stats = new['batch_stats']['reattn_norm']
  np.testing.assert_allclose(
    stats['mean'], 0.1 * mixed.mean((0, 2, 3)), rtol=1e-5
  )
  # PyTorch's running variance divides by one less than the number of elements.
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * mixed.var((0, 2, 3), ddof=1), rtol=1e-5
  )


def test_outputs():
  images, variables = tiny_setup()
  logits, out = apply(variables, images, return_attention=True)
  chex.assert_shape(logits, (2, 5))
  chex.assert_shape(out['stem'], (2, 2, 3, 12))
  chex.assert_shape(out['pre_logits'], (2, 12))
  chex.assert_shape([out['tokens'], out['block_02']], (2, 7, 12))
  for key in ('attention', 'attention_softmax'):
    chex.assert_shape(out[key], (2, 3, 7, 7))
    assert len(out[key]) == 3
  for probs, mixed in zip(out['attention_softmax'], out['attention']):
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    assert np.abs(probs - mixed).max() > 0.01
  same, plain = tiny().apply(variables, images, train=False)  # without jit
  chex.assert_trees_all_close(same, logits, atol=1e-5)
  assert not any(k.startswith('attention') for k in plain)


def test_blocks_without_re_attention_are_plain():
  images, variables = tiny_setup(reattn=(False, True, False))
  assert list(variables['batch_stats']) == ['block_1']
  _, out = apply(
    variables, images, reattn=(False, True, False), return_attention=True
  )
  for i in (0, 2):
    chex.assert_trees_all_equal(
      out['attention'][i], out['attention_softmax'][i]
    )


def test_adjustment_enlarges_both_branches():
  x = jax.random.normal(jax.random.key(0), (2, 7, 12))
  block = functools.partial(deepvit.Block, num_heads=3, mlp_dim=24)
  variables = block().init(jax.random.key(1), x, 0.0, False)
  for kernel in (
    'attn/out',
    'mlp/Dense_1',
  ):  # with a zero kernel, a branch adds nothing
    module, layer = kernel.split('/')
    params = jax.tree.map(lambda p: p, variables['params'])
    params[module][layer] = jax.tree.map(jnp.zeros_like, params[module][layer])
    run = lambda a, params=params: (
      block(adjustment=a).apply({**variables, 'params': params}, x, 0.0, False)[
        0
      ]
      - x
    )
    chex.assert_trees_all_close(run(0.5), 2 * run(1.0), atol=1e-5, rtol=1e-4)


def test_cnn_embed():
  images = jax.random.normal(jax.random.key(0), (2, 16, 32, 3))
  embed = ConvStem(12, 8, deepvit.STEM)
  variables = jax.jit(embed.init, static_argnums=2)(
    jax.random.key(1), images, False
  )
  kernels = jax.tree.map(jnp.shape, variables['params'])
  assert kernels['conv_0'] == {'kernel': (7, 7, 3, 64)}
  assert kernels['conv_1'] == {'kernel': (3, 3, 64, 64)}
  assert kernels['proj'] == {'kernel': (4, 4, 64, 12), 'bias': (12,)}
  bound = 1 / (4 * 4 * 64) ** 0.5
  for x in variables['params']['proj'].values():
    assert 0.5 * bound < np.abs(x).max() <= bound
  x, new = jax.jit(
    lambda v, x: embed.apply(v, x, True, mutable=['batch_stats'])
  )(variables, images)
  chex.assert_shape(x, (2, 2, 4, 12))
  for name in ('bn_0', 'bn_1'):
    assert np.abs(new['batch_stats'][name]['mean']).max() > 0


def test_drop_path_is_linear():
  """The rate is 0 in the first block and `drop_path` in the last one."""
  images, variables = tiny_setup()
  (_, out), _ = jax.jit(
    functools.partial(
      tiny(drop_path=0.9999).apply, train=True, mutable=['batch_stats']
    )
  )(variables, images, rngs={'dropout': jax.random.key(0)})
  assert np.abs(out['block_00'] - out['with_posemb']).max() > 1e-3
  chex.assert_trees_all_equal(out['block_02'], out['block_01'])


def test_errors():
  images = jnp.zeros((1, 16, 16, 3))
  init = lambda **fields: jax.eval_shape(
    functools.partial(tiny(**fields).init, train=False),
    jax.random.key(0),
    images,
  )
  with pytest.raises(ValueError, match='has 2 entries for depth=3 blocks'):
    init(reattn=(True, False))
  with pytest.raises(ValueError, match='patch_size 5 .*even number'):
    init(patch_size=5, cnn_embed=True)
  with pytest.raises(ValueError, match='width 12 is not divisible'):
    init(num_heads=5)
