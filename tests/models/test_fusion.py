"""Forms for the compiler for CPUs: values, derivatives, and what it makes."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import fusion


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
