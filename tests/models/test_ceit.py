"""CeiT: sizes, stem, LeFF, layer-wise class attention, released names."""

import functools
import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.models import ceit
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.weights import from_state_dict, released_shapes, to_state_dict

# Numbers of parameters for 224 and 384 px, and of running statistics.
# The fields of the reimplementation rishikksh20/CeiT-pytorch.
REIMPLEMENTED = dict(
  patch_size=16,
  stem_width=32,
  stem_bias=True,
  stem_padding=4,
  pool_padding=0,
  leff_gelu3=True,
  leff_cls='identity',
  depthwise_bias=False,
  qkv_bias=False,
  lca_posemb=False,
  epsilon=1e-5,
)


def tiny(**fields):
  return ceit.CeiT(
    **{
      **dict(
        num_classes=5,
        patch_size=8,
        width=12,
        depth=2,
        num_heads=3,
        mlp_dim=24,
        stem_width=6,
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


def stacked(variables):
  """The variables with stacked blocks, for a scanned model."""
  result = {}
  for collection, tree in variables.items():
    tree = dict(tree)
    blocks = [tree.pop(f'block_{i}') for i in range(2)]
    tree['block'] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    result[collection] = tree
  return result


def shapes(model, size):
  return jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )


def count(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def test_registered():
  assert list_models('ceit') == ['ceit_b', 'ceit_s', 'ceit_t']
  info = model_info('ceit_s')
  assert (
    info.preprocessing.normalize == 'imagenet'
    and info.preprocessing.crop == 0.875
  )


@pytest.mark.parametrize(
  'width,heads,lca,want',
  [
    (192, 3, False, 5_790_568),
    (192, 3, True, 6_087_016),
    (384, 6, True, 22_784_680),
    (768, 12, True, 88_030_504),
  ],
)
def test_parameter_counts_of_the_reimplementation(width, heads, lca, want):
  model = ceit.CeiT(
    width=width,
    num_heads=heads,
    head_width=64,
    lca=lca,
    lca_heads=4,
    lca_head_width=48,
    lca_mlp_dim=384,
    scan=True,
    **REIMPLEMENTED,
  )
  assert count(shapes(model, 224)['params']) == want


@pytest.mark.parametrize(
  'size,image_size,gmacs',
  [('t', 224, 1.395), ('t', 384, 5.103), ('s', 224, 4.760)],
)
def test_multiply_accumulates(size, image_size, gmacs):
  model = create_model(f'ceit_{size}', scan=True)
  macs = forward_macs(model, image_size, image_size)
  assert round(macs / 1e9, 3) == gmacs


@pytest.mark.parametrize(
  'file,lca', [('ceit_tiny', False), ('ceit_tiny_lca', True)]
)
def test_released_names_of_the_reimplementation(file, lca):
  model = ceit.CeiT(
    lca=lca, lca_heads=4, lca_head_width=48, lca_mlp_dim=384, **REIMPLEMENTED
  )
  got = released_shapes(model, 224, 'rishikksh20')
  assert got == tsv_shapes(file)


def test_released_names():
  names = released_shapes(create_model('ceit_t'), 224, 'official')
  assert len(names) == 14 + 12 * 26 + 12
  for name, shape in {
    'i2t.backbone.conv.weight': (64, 3, 7, 7),
    'i2t.backbone.bn.running_var': (64,),
    'i2t.proj.weight': (192, 64, 4, 4),
    'cls_token': (1, 1, 192),
    'pos_embed': (1, 197, 192),
    'pos_layer_embed': (1, 12, 192),
    'blocks.3.norm1.weight': (192,),
    'blocks.11.attn.qkv.weight': (576, 192),
    'blocks.0.attn.qkv.bias': (576,),
    'blocks.0.attn.proj.bias': (192,),
    'blocks.0.leff.conv1.weight': (768, 192, 1, 1),
    'blocks.0.leff.conv2.weight': (768, 1, 3, 3),
    'blocks.0.leff.conv2.bias': (768,),
    'blocks.0.leff.conv3.weight': (192, 768, 1, 1),
    'blocks.0.leff.bn3.running_mean': (192,),
    'lca.attn.qkv.weight': (576, 192),
    'lca.feedforward.fc1.weight': (768, 192),
    'norm.weight': (192,),
    'head.weight': (1000, 192),
  }.items():
    assert names[name] == shape


def test_weights_round_trip():
  _images, variables = tiny_setup()
  released = to_state_dict(variables, tiny(), 'official')
  for fields in ({}, {'scan': True}):
    model = tiny(**fields)
    loaded, report = from_state_dict(
      model, {f'model.{k}': v for k, v in released.items()}, (16, 24)
    )
    assert report.format == 'official'
    want = stacked(variables) if fields else variables
    chex.assert_trees_all_equal(loaded, want)
    again = to_state_dict(loaded, model, 'official')
    assert again.keys() == released.keys()
    for name, x in again.items():
      np.testing.assert_array_equal(x, released[name])


def test_outputs():
  images, variables = tiny_setup()
  logits, out = apply(variables, images, return_attention=True)
  chex.assert_shape(logits, (2, 5))
  chex.assert_shape(out['pooled_map'], (2, 4, 6, 6))
  chex.assert_shape(out['stem'], (2, 2, 3, 12))
  chex.assert_shape(out['pre_logits'], (2, 12))
  chex.assert_shape(
    [out[k] for k in ('tokens', 'encoded', 'with_posemb', 'block_01')],
    (2, 7, 12),
  )
  chex.assert_shape(out['attention'], (2, 3, 7, 7))
  chex.assert_shape(out['attention_lca'], (2, 3, 1, 2))
  assert len(out['attention']) == 2
  for probs in out['attention'] + [out['attention_lca']]:
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
  same, plain = tiny().apply(variables, images, train=False)  # without jit
  chex.assert_trees_all_close(same, logits, atol=1e-5)
  assert not any(k.startswith('attention') for k in plain)
  params = {k: v for k, v in variables['params'].items() if k != 'head'}
  features, _ = apply({**variables, 'params': params}, images, num_classes=0)
  chex.assert_trees_all_close(features, out['pre_logits'], atol=1e-5)


def test_class_token_in_the_feed_forward():
  """In LeFF, the released code adds LN(cls), and the paper keeps cls."""
  images, variables = tiny_setup()
  _, out = apply(variables, images)
  norm = variables['params']['block_1']['LayerNorm_1']
  cls = out['block_01_attention'][:, 0]
  added = nn.LayerNorm(epsilon=1e-6).apply({'params': norm}, cls)
  np.testing.assert_allclose(out['block_01'][:, 0], cls + added, atol=1e-5)
  _, out = apply(variables, images, leff_cls='identity')
  np.testing.assert_array_equal(
    out['block_01'][:, 0], out['block_01_attention'][:, 0]
  )


def test_third_gelu():
  x = jax.random.normal(jax.random.key(0), (1, 3, 3, 8))
  variables = ceit.LeFF(16).init(jax.random.key(1), x, False)
  plain = ceit.LeFF(16).apply(variables, x, False)
  paper = ceit.LeFF(16, gelu3=True).apply(variables, x, False)
  chex.assert_trees_all_close(
    paper, nn.gelu(plain, approximate=False), atol=1e-6
  )


def test_layerwise_attention_reads_every_block():
  images, variables = tiny_setup()

  def head_input(cls):  # the class token of one block, moved
    tokens = jnp.stack(cls, axis=1)
    x, _probs = ceit.LayerwiseClassAttention(3, 24).apply(
      {'params': variables['params']['lca']}, tokens, False
    )
    return x

  cls = list(jax.random.normal(jax.random.key(0), (3, 2, 12)))
  base = head_input(cls)
  for i in range(3):
    moved = [c + (j == i) for j, c in enumerate(cls)]
    # Adding a constant would be removed by LayerNorm, so channels are scaled.
    moved[i] = cls[i] * jnp.linspace(0.5, 2, 12).reshape(1, 12)
    assert np.abs(head_input(moved) - base).max() > 1e-3
  assert shapes(tiny(), 16)['params']['pos_layer_embedding'].shape == (1, 2, 12)
  values = tiny().init(jax.random.key(0), images, train=False)['params']
  np.testing.assert_array_equal(values['pos_layer_embedding'], 0)
  assert 'lca' not in shapes(tiny(lca=False), 16)['params']
  assert (
    'pos_layer_embedding' not in shapes(tiny(lca_posemb=False), 16)['params']
  )


def test_initial_values():
  """Convolutions have PyTorch's initial values, linear layers N(0, 0.02)."""
  x = jnp.zeros((1, 16, 16, 3))
  params = ceit.CeiT(width=96, depth=1, num_heads=3, num_classes=50).init(
    jax.random.key(0), x, train=False
  )['params']
  block = params['block_0']
  for kernel, fan_in in (
    (block['leff']['conv1']['kernel'], 96),
    (block['leff']['conv2']['kernel'], 9),
    (block['leff']['conv1']['bias'], 96),
    (block['leff']['conv3']['bias'], 384),
    (params['i2t']['conv']['kernel'], 147),
    (params['i2t']['proj']['bias'], 1024),
  ):
    bound = fan_in**-0.5
    assert 0.8 * bound < jnp.abs(kernel).max() <= bound
  for kernel in (block['attn']['query']['kernel'], params['head']['kernel']):
    assert 0.018 < kernel.std() < 0.022


def test_position_table_is_resized():
  _, variables = tiny_setup()
  released = to_state_dict(variables, tiny(), 'official')
  loaded, report = from_state_dict(
    tiny(), released, (32, 48), source_image_size=(16, 24)
  )
  assert [e.path for e in report.resized] == ['params/pos_embedding']
  table = loaded['params']['pos_embedding']
  assert table.shape == (1, 1 + 4 * 6, 12)
  np.testing.assert_array_equal(
    table[:, 0], variables['params']['pos_embedding'][:, 0]
  )


@pytest.mark.parametrize('change', ['i2t', 'leff', 'lca'])
def test_each_change_can_be_switched_off(change):
  """The parameters of the other two changes stay the same."""
  names = lambda model: set(shapes(model, 32)['params'])
  without = tiny(**{change: False})
  expected = {
    'i2t': names(tiny()) - {'i2t'} | {'embedding'},
    'leff': names(tiny()),
    'lca': names(tiny()) - {'lca', 'pos_layer_embedding'},
  }
  assert names(without) == expected[change]
  block = shapes(without, 32)['params']['block_0']
  assert ('mlp' in block) == (change == 'leff') == ('leff' not in block)


def test_without_the_three_changes_it_is_deit():
  """DeiT computes the same logits with the same parameters, renamed."""
  fields = dict(patch_size=8, width=12, depth=2, num_heads=3, mlp_dim=24)
  deit = create_model('deit_ti16', num_classes=5, **fields)
  model = tiny(i2t=False, leff=False, lca=False)
  images = jnp.asarray(
    np.random.default_rng(0).standard_normal((2, 16, 24, 3)), jnp.float32
  )
  params = random_variables(model, images)['params']
  blocks = {
    f'encoderblock_{i}': {
      'LayerNorm_0': block['LayerNorm_0'],
      'LayerNorm_1': block['LayerNorm_1'],
      'MultiHeadDotProductAttention_0': block['attn'],
      'MlpBlock_0': block['mlp'],
    }
    for i, block in ((i, params[f'block_{i}']) for i in range(2))
  }
  same = {
    'embedding': params['embedding'],
    'cls': params['cls'],
    'head': params['head'],
    'Transformer': {
      **blocks,
      'posembed_input': {'pos_embedding': params['pos_embedding']},
      'encoder_norm': params['encoder_norm'],
    },
  }
  want, _ = deit.apply({'params': same}, images, train=False)
  got, _ = model.apply({'params': params}, images, train=False)
  np.testing.assert_allclose(got, want, atol=2e-5)
