"""CaiT: sizes, LayerScale, talking heads, class attention, released names."""

import functools

import chex
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.models import cait
from vit_jax.models.attention import attend
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.weights import from_state_dict, released_shapes, to_state_dict

# Numbers of parameters for 224 and 384 px, counted with the official code, and
# for XS-36, S-48 and M-24 with timm.
COUNTS = {
  'xxs24': (11_956_264, 12_029_224),
  'xxs36': (17_299_720, 17_372_680),
  'xs24': (26_560_648, 26_670_088),
  'xs36': (38_557_432, 38_666_872),
  's24': (46_916_200, 47_062_120),
  's36': (68_220_712, 68_366_632),
  's48': (89_525_224, 89_671_144),
  'm24': (185_850_088, 186_141_928),
  'm36': (270_929_512, 271_221_352),
  'm48': (356_008_936, 356_300_776),
}
# Depth, heads and initial LayerScale: the code's where there is code (XXS-36
# differs from the paper's rule), else the paper's rule.
PLANS = {
  'xxs24': (24, 4, 1e-5),
  'xxs36': (36, 4, 1e-5),
  'xs24': (24, 6, 1e-5),
  'xs36': (36, 6, 1e-6),
  's24': (24, 8, 1e-5),
  's36': (36, 8, 1e-6),
  's48': (48, 8, 1e-6),
  'm24': (24, 16, 1e-5),
  'm36': (36, 16, 1e-6),
  'm48': (48, 16, 1e-6),
}


def tiny(**fields):
  return cait.CaiT(
    **{
      **dict(
        num_classes=5,
        patch_size=8,
        width=16,
        depth=3,
        num_heads=2,
        mlp_dim=32,
        layer_scale=0.5,
      ),
      **fields,
    }
  )


@functools.cache
def tiny_setup():
  images = np.random.default_rng(0).standard_normal((2, 16, 24, 3))
  images = jnp.asarray(images, jnp.float32)
  return images, random_variables(tiny(), images)


def apply(variables, images, **fields):
  return jax.jit(functools.partial(tiny(**fields).apply, train=False))(
    variables, images
  )


def stacked(params):
  """The parameters with stacked blocks, for a scanned model."""
  params = dict(params)
  blocks = [params.pop(f'block_{i}') for i in range(3)]
  return {**params, 'block': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def test_registered():
  assert list_models('cait') == sorted(f'cait_{s}' for s in COUNTS)
  info = model_info('cait_m48')
  assert (
    info.preprocessing.normalize == 'imagenet'
    and info.preprocessing.crop == 1.0
  )
  assert info.released == ('M48_448.pth', 'cait_m48_448.fb_dist_in1k')
  assert not model_info('cait_xs36').released


@pytest.mark.parametrize('size', PLANS)
def test_stage_plan_and_layer_scale(size):
  depth, heads, scale = PLANS[size]
  fields = model_info(f'cait_{size}').fields
  assert (fields['depth'], fields['num_heads']) == (depth, heads)
  assert fields['width'] == 48 * heads
  model = create_model(
    f'cait_{size}',
    width=8,
    num_heads=2,
    mlp_dim=8,
    patch_size=8,
    num_classes=0,
    scan=True,
  )

  @jax.jit  # so that only what is returned is computed
  def gammas():
    params = model.init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
    )['params']
    assert 'cls_block_2' not in params
    assert 'proj_l' not in params['cls_block_0']['attn']
    return [
      params[block][gamma]
      for gamma in ('gamma_1', 'gamma_2')
      for block in ('block', 'cls_block_0', 'cls_block_1')
    ]

  for gamma, shape in zip(gammas(), [(depth, 8), (8,), (8,)] * 2):
    assert gamma.shape == shape
    np.testing.assert_array_equal(gamma, np.float32(scale))


def test_layer_scale_rule():
  assert [cait.layer_scale_init(d) for d in (12, 18, 19, 24, 25, 36, 48)] == [
    0.1,
    0.1,
    1e-5,
    1e-5,
    1e-6,
    1e-6,
    1e-6,
  ]


@pytest.mark.parametrize('layout', ['official', 'timm'])
def test_released_names(layout):
  name = {'official': 'deit_cait_XXS24_224', 'timm': 'timm_cait_xxs24_224'}
  got = released_shapes(create_model('cait_xxs24'), 224, layout)
  assert got == tsv_shapes(name[layout])


def test_weights_round_trip():
  _images, variables = tiny_setup()
  released = to_state_dict(variables, tiny(), 'official')
  # Names in published files have a prefix; a scanned model stacks its blocks.
  released = {f'module.{name}': x for name, x in released.items()}
  for fields in ({}, {'scan': True}):
    model = tiny(**fields)
    loaded, report = from_state_dict(model, released, (16, 24))
    assert len(report.loaded) == len(report.records)
    want = {'params': stacked(variables['params'])} if fields else variables
    chex.assert_trees_all_equal(loaded, want)
    again = to_state_dict(loaded, model, 'official')
    assert again.keys() == {n.removeprefix('module.') for n in released}
    for name, x in again.items():
      np.testing.assert_array_equal(x, released[f'module.{name}'])


class Mixing(cait.nn.Module):
  @cait.nn.compact
  def __call__(self, q, k, v):
    return cait.talking_heads(q, k, v)


def talking(params, seed=0):
  q, k, v = jax.random.normal(jax.random.key(seed), (3, 2, 7, 4, 5))
  y, maps = Mixing().apply({'params': params}, q, k, v)
  return (q, k, v), y, maps


def test_talking_heads():
  eye = {'kernel': jnp.eye(4), 'bias': jnp.zeros(4)}
  (q, k, v), y, maps = talking({'proj_l': eye, 'proj_w': eye})
  want, probs = attend(q, k, v)
  chex.assert_trees_all_close(y, want, atol=1e-6)
  chex.assert_trees_all_close(maps['mixed'], probs, atol=1e-6)

  # Random matrices. A constant bias of the logits does not change the softmax.
  a, b = np.asarray(jax.random.normal(jax.random.key(3), (2, 4, 4)))
  shift = {'kernel': jnp.asarray(a), 'bias': jnp.full(4, 3.0)}
  bias = np.arange(4.0, dtype=np.float32)
  (q, k, v), y, maps = talking(
    {
      'proj_l': shift,
      'proj_w': {'kernel': jnp.asarray(b), 'bias': jnp.asarray(bias)},
    }
  )
  logits = np.einsum('bthk,bshk->bhts', q, k) / 5**0.5
  logits = np.stack(
    [sum(a[i, j] * logits[:, i] for i in range(4)) for j in range(4)], 1
  )
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  mixed = np.stack(
    [sum(b[i, j] * probs[:, i] for i in range(4)) + bias[j] for j in range(4)],
    1,
  )
  np.testing.assert_allclose(maps['softmax'], probs, atol=1e-5)
  np.testing.assert_allclose(maps['mixed'], mixed, atol=1e-5)
  np.testing.assert_allclose(
    y, np.einsum('bhts,bshk->bthk', mixed, v), atol=1e-4
  )


def test_outputs():
  images, variables = tiny_setup()
  logits, out = apply(variables, images, return_attention=True)
  chex.assert_shape(logits, (2, 5))
  chex.assert_shape(out['stem'], (2, 2, 3, 16))
  chex.assert_shape(out['pre_logits'], (2, 16))
  chex.assert_shape(out['tokens'], (2, 7, 16))
  chex.assert_shape([out['block_02'], out['with_posemb']], (2, 6, 16))
  chex.assert_shape(out['cls_block_01'], (2, 1, 16))
  chex.assert_shape(out['attention'] + out['attention_softmax'], (2, 2, 6, 6))
  chex.assert_shape(out['attention_cls'], (2, 2, 1, 7))
  assert [len(out[k]) for k in ('attention', 'attention_cls')] == [3, 2]
  for probs in out['attention_softmax'] + out['attention_cls']:
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
  same, plain = tiny().apply(variables, images, train=False)  # without jit
  chex.assert_trees_all_close(same, logits, atol=1e-5)
  assert not any(k.startswith('attention') for k in plain)
  params = {k: v for k, v in variables['params'].items() if k != 'head'}
  features, _ = apply({'params': params}, images, num_classes=0)
  chex.assert_trees_all_close(features, out['pre_logits'], atol=1e-5)


def test_patches_have_no_order_but_the_table():
  """Without the position table, the order of the patches does not matter."""
  images, variables = tiny_setup()
  flat = flatten_dict(variables, sep='/')
  table = flat['params/pos_embedding']
  variables = jax.tree.map(lambda x: x, variables)
  variables['params']['pos_embedding'] = jnp.zeros_like(table)
  upside_down = images.reshape(2, 2, 8, 24, 3)[:, ::-1].reshape(images.shape)
  a, b = (apply(variables, x)[0] for x in (images, upside_down))
  chex.assert_trees_all_close(a, b, atol=1e-4)
  variables['params']['pos_embedding'] = table
  a, b = (apply(variables, x)[0] for x in (images, upside_down))
  assert np.abs(a - b).max() > 1e-3


def test_drop_path_is_constant_and_spares_class_blocks():
  images, variables = tiny_setup()
  run = jax.jit(functools.partial(tiny(drop_path=0.9999).apply, train=True))
  _, out = run(variables, images, rngs={'dropout': jax.random.key(0)})
  for i in range(3):  # all branches are dropped, in the first block too
    chex.assert_trees_all_equal(out[f'block_{i:02d}'], out['with_posemb'])
  assert np.abs(out['cls_block_01'] - out['cls_block_00']).max() > 1e-3
