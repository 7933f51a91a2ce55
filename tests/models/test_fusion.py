"""Forms for the compiler for CPUs: values, derivatives, and what it makes."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import fusion
from vit_jax.models.fusion import apart
from vit_jax.models.group_norm import GroupNorm
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.platform import traced_for


def _columns(x):
  """Three columns side by side, and a row of zeros below."""
  x = jnp.pad(x, ((0, 0), (0, 1), (1, 1), (0, 0)))
  return jnp.concatenate([x[:, :, i : i + 4] for i in range(3)], -1)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32'])
def test_moved_values_are_the_same(dtype):
  x = (8 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5))).astype(dtype)
  y = jax.jit(lambda x: fusion.moved(_columns, x))(x)
  chex.assert_trees_all_equal_shapes_and_dtypes(y, _columns(x))
  chex.assert_trees_all_equal(y, _columns(x))


def test_moved_values_have_their_derivatives():
  x = jnp.arange(1, 121, dtype=jnp.bfloat16).reshape(2, 3, 4, 5) / 64

  def derivatives(columns):
    length = lambda x: (columns(x) ** 3).sum()
    gradient = jax.grad(length)
    return (
      gradient(x),
      jax.jvp(columns, (x,), (x * x,)),
      jax.grad(lambda x: (gradient(x) * x).sum())(x),
      jax.vmap(columns)(jnp.stack([x, 2 * x])),
    )

  actual = derivatives(lambda x: fusion.moved(_columns, x))
  chex.assert_trees_all_equal(actual, derivatives(_columns))
  assert all(jnp.abs(y).min() > 0 for y in (actual[0], actual[2]))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_no_array_is_joined_in_another_type(dtype):
  x = jnp.ones((4, 32, 4, 128), dtype)
  program = jax.jit(lambda x: fusion.moved(_columns, x)).lower(x).compile()
  joined = re.findall(r'= (\w+)\[\S* concatenate\(', program.as_text())
  assert joined
  assert set(joined) == {'f32' if dtype == 'float32' else 'u16'}


def test_a_stored_array_is_the_same():
  x = jnp.arange(5.0)
  chex.assert_trees_all_equal(jax.jit(fusion.stored)(x), x)
  gradient = jax.grad(lambda x: (fusion.stored(x) ** 2).sum())(x)
  chex.assert_trees_all_equal(gradient, 2 * x)


@pytest.mark.parametrize(
  'module',
  [GroupNorm(8, dtype=jnp.bfloat16), LayerNorm(dtype=jnp.bfloat16)],
  ids=['group', 'layer'],
)
def test_a_norm_stores_no_array_in_float32(module):
  """Its sums convert what they add: no such array is as large as x."""
  x = jax.random.normal(jax.random.key(0), (4, 16, 16, 64), jnp.bfloat16)
  with traced_for('cpu'):
    variables = module.init(jax.random.key(1), x)
    program = jax.jit(module.apply).lower(variables, x).compile()
  main = program.as_text().partition('\nENTRY ')[2]
  results = re.findall(r'= (\w+)\[4,16,16,64\]', main)
  assert results
  assert 'f32' not in results, main


def test_uses_apart_are_the_same():
  x = jnp.arange(3.0)
  for platform in ('cpu', 'any'):
    with traced_for(platform):
      assert len(apart(x, 3)) == 3
      total = lambda x: sum(y.sum() * i for i, y in enumerate(apart(x, 3)))
      chex.assert_trees_all_equal(jax.jit(total)(x), jnp.float32(9))
      chex.assert_trees_all_equal(jax.grad(total)(x), jnp.full(3, 3.0))
