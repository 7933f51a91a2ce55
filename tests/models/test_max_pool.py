"""max_pool: against nn.max_pool, also where several entries are the largest."""

import re

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models.max_pool import max_pool
from vit_jax.models.platform import traced_for


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_both_dtypes_equal_flax(dtype):
  _assert_equals_flax(dtype, (8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.parametrize(
  ('size', 'window', 'strides', 'padding'),
  [
    ((7, 9), (3, 3), (2, 2), 'SAME'),
    ((9, 9), (3, 3), (2, 2), 'VALID'),
    ((8, 6), (2, 2), (2, 2), 'VALID'),
    ((9, 7), (3, 2), (2, 3), 'VALID'),
    ((11, 11), (2, 2), (3, 3), 'VALID'),  # some entries are in no window
    ((6, 5), (3, 3), (1, 1), 'SAME'),
    ((5, 6), (4, 5), (2, 3), ((2, 1), (0, 3))),
    ((3, 3), (3, 3), (2, 2), 'VALID'),
  ],
)
def test_windows_equal_flax(size, window, strides, padding):
  _assert_equals_flax('float32', size, window, strides, padding)


def _assert_equals_flax(dtype, size, window, strides, padding):
  # Small integers, so that many windows have their maximum several times, and
  # sums of gradients are exact.
  key = jax.random.key(0)
  x = jax.random.randint(key, (2, *size, 3), -2, 3).astype(dtype)

  def run(pool):
    y, backward = jax.vjp(lambda x: pool(x, window, strides, padding), x)
    g = jax.random.randint(jax.random.key(1), y.shape, -8, 9).astype(dtype)
    return y, backward(g)

  expected = run(nn.max_pool)
  for platform in ('cpu', 'any'):
    with traced_for(platform):
      chex.assert_trees_all_equal(run(max_pool), expected)


def test_the_gradient_on_a_cpu_has_no_scatter():
  x = jnp.ones((1, 8, 8, 2))
  gradient = jax.grad(lambda x: max_pool(x, (3, 3), (2, 2), 'SAME').sum())
  text = jax.jit(gradient).lower(x).compile().as_text()
  assert not re.search(r'= \S+ (scatter|select-and-scatter)\(', text)


def test_gradients_in_bfloat16_are_added_in_float32():
  """Nine windows share their largest entry; 257 is no number of bfloat16."""
  x = jnp.zeros((1, 3, 3, 1), jnp.bfloat16).at[0, 1, 1, 0].set(1)
  g = jnp.ones((1, 3, 3, 1), jnp.bfloat16).at[0, 0, 0, 0].set(256)
  with traced_for('cpu'):
    pool = lambda x: max_pool(x, (3, 3), (1, 1), 'SAME')
    (gradient,) = jax.vjp(pool, x)[1](g)
  assert gradient.dtype == jnp.bfloat16
  assert gradient[0, 1, 1, 0] == 264  # one by one, it would stay 256
  assert gradient.sum() == 264
