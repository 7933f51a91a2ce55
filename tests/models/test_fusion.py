"""Forms for the compiler for CPUs: values, derivatives, and what it makes."""

import re

import chex
import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import pytest

from vit_jax.models import fusion
from vit_jax.models.fusion import apart
from vit_jax.models.group_norm import GroupNorm
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.outlook import outlook
from vit_jax.models.platform import traced_for
from vit_jax.models.softmax import softmax


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


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(1, 5, 7), (4, 1, 2, 3, 8), (6,)])
def test_row_products_are_sums_of_products(shape, dtype):
  a, b = jax.random.normal(jax.random.key(0), (2, *shape), dtype)
  y = fusion.row_products(a, b)
  assert y.dtype == jnp.float32
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  chex.assert_trees_all_close(y, (a * b).sum(-1, keepdims=True), atol=1e-5)


def test_row_products_of_two_types_are_in_the_wider():
  a, b = jnp.ones((2, 3), jnp.bfloat16), jnp.full((2, 3), 1 / 3)
  chex.assert_trees_all_close(fusion.row_products(a, b), jnp.ones((2, 1)))


@pytest.mark.parametrize('shape', [(1, 2, 5, 7), (3, 2, 1, 9)])
def test_softmax_has_the_values_and_gradient_of_jax(shape):
  x, g = 3 * jax.random.normal(jax.random.key(0), (2, *shape))
  y, gradient = jax.vjp(softmax, x)
  expected, expected_gradient = jax.vjp(jax.nn.softmax, x)
  chex.assert_trees_all_equal(y, expected)
  chex.assert_trees_all_close(gradient(g), expected_gradient(g), atol=1e-6)
  y, gradient = jax.vjp(softmax, x.astype(jnp.bfloat16))
  assert y.dtype == gradient(y)[0].dtype == jnp.bfloat16


def _of_layer_norm(x):
  return LayerNorm().apply(
    {'params': {'scale': jnp.ones(36), 'bias': jnp.ones(36)}}, x
  )


def _of_outlook(x):
  x = x.reshape(1, 2, 2, 1, 36)
  weights = jnp.tile(x[:, :1, :1], (1, 1, 1, 1, 3))[..., :81]
  return outlook(weights.reshape(1, 1, 1, 1, 9, 9), x)


def _sums_of_products(jaxpr):
  """The shapes of all products whose sum over the last axis is computed."""
  made_by = {y: e.primitive.name for e in jaxpr.eqns for y in e.outvars}
  shapes = []
  for equation in jaxpr.eqns:
    for inner in jaxprs_in_params(equation.params):
      shapes += _sums_of_products(inner)
    if equation.primitive.name == 'reduce_sum':
      (x,) = equation.invars
      if x.aval.ndim - 1 in equation.params['axes'] and made_by.get(x) == 'mul':
        shapes.append(x.aval.shape)
  return shapes


@pytest.mark.parametrize(
  'function', [jax.nn.softmax, softmax, _of_layer_norm, _of_outlook]
)
def test_no_products_of_one_image_are_added(function):
  """Their sum is slow if the first axis has length 1."""
  x = jax.random.normal(jax.random.key(0), (1, 4, 36))
  with traced_for('cpu'):
    gradient = jax.make_jaxpr(lambda x: jax.vjp(function, x)[1](function(x)))(x)
  added = [
    shape for shape in _sums_of_products(gradient.jaxpr) if shape[0] == 1
  ]
  assert bool(added) == (function is jax.nn.softmax), added
