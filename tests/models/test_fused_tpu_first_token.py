"""Attention with the first token apart equals attention of all tokens.

The kernel runs in interpret mode, because no TPU is at hand.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention_operands import operands, with_gradients
from tests.random_variables import random_variables
from vit_jax.models import attention
from vit_jax.models.fused import tpu_first_token
from vit_jax.models.platform import traced_for
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh


def _plain(q, k, v):
  return attention.attend(q, k, v)[0]


def _apart(q, k, v):
  parts = [[x[:, :1] for x in (q, k, v)], [x[:, 1:] for x in (q, k, v)]]
  return jnp.concatenate(tpu_first_token.attend(*parts, interpret=True), axis=1)


def _assert_close(actual, expected, dtype):
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  for a, b in zip(actual, expected, strict=True):
    b = b.astype(jnp.float32)
    chex.assert_trees_all_close(
      a.astype(jnp.float32), b, atol=tolerance * float(jnp.abs(b).max())
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'shape', [(2, 17, 17, 2, 16, 16), (1, 6, 6, 3, 8, 8)], ids=str
)
def test_it_equals_the_plain_form(shape, dtype):
  args = operands(shape, dtype)
  ours = jax.jit(lambda *x: with_gradients(_apart, *x))(*args)
  exact = [x.astype(jnp.float32) for x in args]
  assert ours[0].dtype == dtype
  _assert_close(ours, with_gradients(_plain, *exact), dtype)


@pytest.mark.parametrize(('first', 'others'), [(1e3, 1), (1, 1e3)])
def test_large_logits_do_not_overflow(first, others):
  q, k, v, g = operands((1, 9, 9, 2, 8, 8), 'float32')
  size = jnp.where(jnp.arange(9) == 0, first, others)
  k *= size.reshape(1, 9, 1, 1)
  ours = with_gradients(_apart, q, k, v, g)
  chex.assert_tree_all_finite(ours)
  _assert_close(ours[:1], with_gradients(_plain, q, k, v, g)[:1], 'float32')


@pytest.mark.parametrize('preset', ['data', 'fsdp_tensor'])
def test_each_device_computes_its_examples_and_heads(preset):
  args = operands((8, 9, 9, 2, 8, 8), 'float32')
  with jax.set_mesh(make_mesh(preset)):
    ours = jax.jit(lambda *x: with_gradients(_apart, *x))(*args)
  _assert_close(ours, with_gradients(_plain, *args), 'float32')


def _model(**fields: Any):
  return create_model(
    'vit_ti16', 3, patch_size=8, width=32, depth=1, num_heads=2, mlp_dim=32,
    **fields,
  )  # fmt: skip


@pytest.mark.parametrize('qkv_bias', [True, False])
def test_the_module_has_the_parameters_and_numbers_of_the_other(
  monkeypatch, qkv_bias
):
  monkeypatch.setattr(
    tpu_first_token,
    'attend',
    functools.partial(tpu_first_token.attend, interpret=True),
  )
  fields: dict[str, Any] = dict(
    num_heads=2, qkv_bias=qkv_bias, bias_init=jax.nn.initializers.normal()
  )
  x = jax.random.normal(jax.random.key(0), (2, 9, 16))
  modules = (
    attention.MultiHeadDotProductAttention(**fields),
    tpu_first_token.FirstTokenApart(**fields),
  )
  variables = [m.init(jax.random.key(1), x, x, False) for m in modules]
  chex.assert_trees_all_equal(*variables)

  def gradients(module):
    loss = lambda v, x: (module.apply(v, x, x, True)[0] ** 2).sum()
    return jax.value_and_grad(loss, (0, 1))(variables[0], x)

  expected, actual = map(gradients, modules)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def _kernels(height: int, width: int, train: bool = False, **fields) -> int:
  """Kernels in a ViT of one block, as it is traced for TPUs."""
  model = _model(dtype='bfloat16', **fields)
  images = jnp.zeros((8, height, width, 3))
  with traced_for('any'):
    variables = random_variables(model, images)
  rngs = {'dropout': jax.random.key(0)}
  apply = lambda v, x: model.apply(v, x, train=train, rngs=rngs)[0]
  with jax.set_mesh(make_mesh()), traced_for('tpu'):
    program = str(jax.make_jaxpr(apply)(variables, images))
  return program.count('pallas_call[')


def test_a_vit_takes_it_where_the_class_token_begins_a_tile():
  assert _kernels(128, 128) == 1  # 257 tokens
  assert (
    _kernels(128, 128, class_token=False, pool='gap') == 1
  )  # 256, all together
  assert _kernels(80, 80) == 1  # 101
  assert _kernels(88, 88) == 1  # 122
  # Other numbers of tokens whose last tile would be nearly empty.
  assert _kernels(128, 136) == 0  # 273


def test_what_it_cannot_compute_takes_the_plain_form():
  assert _kernels(128, 128, train=True, attention_dropout=0.1) == 0
  assert _kernels(128, 128, return_attention=True) == 0
  assert _kernels(128, 128, train=True, class_token_only=True) == 0


def test_fits_only_on_a_tpu():
  x = jnp.zeros((8, 257, 32), jnp.bfloat16)
  with jax.set_mesh(make_mesh()):
    with traced_for('tpu'):
      assert tpu_first_token.fits(x, 2)
      assert not tpu_first_token.fits(x[:, :1], 2)
    with traced_for('cpu'):
      assert not tpu_first_token.fits(x, 2)
