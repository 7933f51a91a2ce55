"""Attention in its form for each platform equals the plain form."""

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.attention_operands import operands, with_gradients
from vit_jax.models import attention
from vit_jax.models.fused import attend as fused
from vit_jax.models.platform import target_platform, traced_for

SHAPES = {  # batch, queries, keys, heads, K, V
  'tokens': (2, 17, 17, 3, 8, 8),
  'class token': (3, 1, 10, 2, 4, 4),
  'other values': (1, 5, 9, 2, 6, 3),
}


def _output_of(attend):
  return lambda *args: attend(*args)[0]


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_form_for_cpus_equals_the_plain_form(shape, dtype):
  args = operands(shape, dtype)
  ours = jax.jit(lambda *x: with_gradients(_output_of(fused.attend), *x))(*args)
  exact = [x.astype(jnp.float32) for x in args]
  plain = with_gradients(_output_of(attention.attend), *exact)
  tolerance = 1e-5 if dtype == 'float32' else 0.04
  for a, b in zip(ours, plain, strict=True):
    assert a.dtype == dtype
    atol = tolerance * float(jnp.abs(b).max())
    chex.assert_trees_all_close(a.astype(jnp.float32), b, atol=atol)


def test_large_logits_do_not_overflow():
  q, k, v, g = (100 * x for x in operands(SHAPES['tokens'], 'float32'))
  ours = with_gradients(_output_of(fused.attend), q, k, v, g)
  plain = with_gradients(_output_of(attention.attend), q, k, v, g)
  chex.assert_tree_all_finite(ours)
  chex.assert_trees_all_close(ours[0], plain[0], rtol=1e-4)


def test_dropout_takes_the_plain_form():
  q, k, v, _ = operands(SHAPES['tokens'], 'float32')
  halve = lambda probs: probs / 2
  y, probs = fused.attend(q, k, v, dropout=halve)
  assert probs is None
  chex.assert_trees_all_close(
    y, attention.attend(q, k, v, dropout=halve)[0], atol=1e-6
  )


def test_the_platform_is_that_of_the_context_the_mesh_or_the_default():
  assert target_platform() == jax.default_backend()
  with traced_for('tpu'):
    assert target_platform() == 'tpu'
    with jax.set_mesh(jax.make_mesh((1,), ('data',))):
      assert target_platform() == 'tpu'
  with jax.set_mesh(jax.make_mesh((1,), ('data',))):
    assert target_platform() == 'cpu'
  with jax.default_device(jax.devices('cpu')[0]):
    assert target_platform() == 'cpu'
