"""DeiT: counts, tokens, fusion, scan, precision, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_variables import random_variables
from tests.released import tsv_shapes
from vit_jax.models.deit import FUSIONS, DistilledViT
from vit_jax.models.registry import create_model, model_info
from vit_jax.models.vit import ViT
from vit_jax.preprocessing import Preprocessing
from vit_jax.weights import (
  from_state_dict,
  released_shapes,
  resize_table,
  to_state_dict,
)

TINY = dict(
  num_classes=5, patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=24
)


def apply(model, variables, images, train=False):
  rngs = {'dropout': jax.random.key(2)}
  return jax.jit(lambda v, x: model.apply(v, x, train=train, rngs=rngs))(
    variables, images
  )


@pytest.fixture(scope='module')
def images():
  return jax.random.normal(jax.random.key(3), (2, 16, 24, 3))


@pytest.fixture(scope='module')
def variables(images):
  return random_variables(DistilledViT(**TINY), images)


def test_registered_as_released():
  for name in (
    'deit_s16',
    'deit_s16_distilled',
    'deit_b16_384',
    'deit_b16_distilled_384',
  ):
    entry = model_info(name)
    assert entry.module is (DistilledViT if 'distilled' in name else ViT)
    size = 384 if name.endswith('384') else 224
    assert entry.preprocessing == Preprocessing(
      (size, size), crop=0.875, interpolation='bicubic', normalize='imagenet'
    )
    assert entry.fields['activation'] == 'gelu_erf'
    assert entry.fields['init_style'] == 'timm'


@pytest.mark.parametrize(
  'layout, file',
  [
    ('official', 'deit_tiny_distilled_patch16_224'),
    ('timm', 'timm_deit_tiny_distilled_patch16_224'),
  ],
)
def test_released_names(layout, file):
  got = released_shapes(create_model('deit_ti16_distilled'), 224, layout)
  assert got == tsv_shapes(file)


def test_fine_tuning_at_another_size(variables):
  """The rows of the two tokens stay; the grid is resized as in DeiT's code."""
  model = DistilledViT(**TINY)
  arrays = to_state_dict(variables, model, 'timm')
  large, _ = from_state_dict(
    model.clone(num_classes=3), arrays, (32, 40), source_image_size=(16, 24)
  )
  table = large['params']['Transformer']['posembed_input']['pos_embedding']
  np.testing.assert_array_equal(table[:, :2], arrays['pos_embed'][:, :2])
  np.testing.assert_array_equal(
    table, resize_table(arrays['pos_embed'], (2, 3), (4, 5), 'bicubic')
  )
  for head in ('head', 'head_dist'):
    np.testing.assert_array_equal(
      large['params'][head]['kernel'], np.zeros((16, 3))
    )


def test_tokens_and_position_table(images, variables):
  """The table has rows for the class token, the other token, the N patches."""
  model = DistilledViT(**TINY, return_attention=True)
  _, out = apply(model, variables, images)
  params = variables['params']
  table = params['Transformer']['posembed_input']['pos_embedding']
  chex.assert_shape(table, (1, 2 + 2 * 3, 16))
  patches = out['stem'].reshape(2, 6, 16)
  tokens = [
    jnp.broadcast_to(params[n], (2, 1, 16)) for n in ('cls', 'dist_token')
  ]
  want = jnp.concatenate([*tokens, patches], 1) + table
  np.testing.assert_allclose(out['with_posemb'], want, atol=1e-6)
  np.testing.assert_array_equal(out['pre_logits'], out['tokens'][:, 0])
  np.testing.assert_array_equal(out['pre_logits_distill'], out['tokens'][:, 1])
  chex.assert_shape(out['attention'], (2, 2, 8, 8))


def test_fusion(images, variables):
  model = DistilledViT(**TINY)
  _, out = apply(model, variables, images)
  a, b = out['logits_class'], out['logits_distill']
  head, dist = variables['params']['head'], variables['params']['head_dist']
  np.testing.assert_allclose(
    a, out['pre_logits'] @ head['kernel'] + head['bias'][None], atol=1e-5
  )
  np.testing.assert_allclose(
    b,
    out['pre_logits_distill'] @ dist['kernel'] + dist['bias'][None],
    atol=1e-5,
  )
  assert not np.allclose(a, b, atol=0.1)
  late = jnp.log((jax.nn.softmax(a) + jax.nn.softmax(b)) / 2)
  want = {
    'mean_logits': (a + b) / 2,
    'mean_probs': late,
    'class': a,
    'distill': b,
  }
  assert set(want) == set(FUSIONS)
  for fusion, expected in want.items():
    logits, _ = apply(model.clone(fusion=fusion), variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5, err_msg=fusion)
    # In training there is no fusion: the logits are those of the class token.
    logits, out = apply(model.clone(fusion=fusion), variables, images, True)
    np.testing.assert_array_equal(logits, out['logits_class'])
    np.testing.assert_allclose(out['logits_distill'], b, atol=1e-5)


def test_initial_values():
  model = create_model('deit_ti16_distilled', depth=1, patch_size=32)
  images = jnp.zeros((1, 224, 224, 3))
  params = jax.jit(lambda k: model.init(k, images, train=False))(
    jax.random.key(0)
  )['params']
  for x in (
    params['cls'],
    params['dist_token'],
    params['head']['kernel'],
    params['head_dist']['kernel'],
    params['Transformer']['posembed_input']['pos_embedding'],
  ):
    assert 0.016 < float(x.std()) < 0.024
  np.testing.assert_array_equal(params['head_dist']['bias'], 0)
  bound = (3 * 32 * 32) ** -0.5  # PyTorch's convolution, weight and bias
  for x in (params['embedding']['kernel'], params['embedding']['bias']):
    assert 0.9 * bound < float(jnp.abs(x).max()) <= bound


def test_gradients(images, variables):
  """A head gets a gradient from its own logits only, the tokens from both."""
  model = DistilledViT(**TINY, drop_path=0.2, dropout=0.1)

  def grads(key):
    def loss(v):
      _, out = model.apply(
        v, images, train=True, rngs={'dropout': jax.random.key(5)}
      )
      return jnp.square(out[key]).sum()

    return jax.jit(jax.grad(loss))(variables)['params']

  norm = lambda g: float(max(jnp.abs(x).max() for x in jax.tree.leaves(g)))
  for key, own, other in (
    ('logits_class', 'head', 'head_dist'),
    ('logits_distill', 'head_dist', 'head'),
  ):
    g = grads(key)
    chex.assert_tree_all_finite(g)
    assert norm(g[own]) > 0 and norm(g[other]) == 0
    assert norm(g['cls']) > 0 and norm(g['dist_token']) > 0


def test_drop_path_spares_the_first_block(images, variables):
  model = DistilledViT(**TINY, drop_path=0.9)
  _, whole = apply(model, variables, images)
  _, out = apply(model, variables, images, train=True)
  np.testing.assert_allclose(out['block_00'], whole['block_00'], atol=1e-6)
  assert not np.allclose(out['block_01'], whole['block_01'], atol=1e-3)
