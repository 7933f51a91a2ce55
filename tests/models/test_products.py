"""The forms of layers for CPUs equal those for other devices."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import cpu_products, products
from vit_jax.models.activations import GELU, activate
from vit_jax.models.fusion import stored
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.patches import embed_patches
from vit_jax.models.platform import traced_for


def _normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def _with_gradients(function, *args):
  y, backward = jax.vjp(function, *args)
  return y, backward(_normal(9, *y.shape).astype(y.dtype))


def _assert_the_same_on_cpu(function, *args, atol=1e-5):
  with traced_for('cpu'):
    ours = _with_gradients(function, *args)
  with traced_for('any'):
    other = _with_gradients(function, *args)
  chex.assert_trees_all_close(ours, other, atol=atol)


def test_by_rows_changes_no_number_and_hides_none():
  x = _normal(0, 3, 5)
  chex.assert_trees_all_equal(jax.jit(cpu_products.by_rows)(x), x)
  for value in (jnp.nan, jnp.inf, -jnp.inf):
    y = jax.jit(cpu_products.by_rows)(x.at[1, 2].set(value))
    assert not jnp.isfinite(y[1, 2])
    chex.assert_trees_all_equal(y[jnp.array([0, 2])], x[jnp.array([0, 2])])


class _Patches(nn.Module):
  patch: tuple[int, int]

  @nn.compact
  def __call__(self, x):
    return embed_patches(x, 5, self.patch)


@pytest.mark.parametrize(
  ('x', 'kernel'),
  [
    ((2, 7, 6), (6, 9)),
    ((2, 7, 6), (6, 4)),
    ((2, 7, 5), (5, 4)),
    ((2, 7, 6), (6, 2, 3)),
    ((2, 7, 2, 3), (2, 3, 5)),
  ],
  ids=['wider', 'narrower', 'narrower, odd', 'to heads', 'from heads'],
)
def test_products_of_dense_layers(x, kernel):
  axes = len(x) - 2 if len(x) > 3 else 1
  dims = (
    (tuple(range(len(x) - axes, len(x))), tuple(range(axes))),
    ((), ()),
  )
  _assert_the_same_on_cpu(
    lambda x, w: products.dot_general(x, w, dims),
    _normal(0, *x),
    _normal(1, *kernel),
  )


@pytest.mark.parametrize('size', [(8, 12), (9, 14)], ids=['whole', 'cut off'])
def test_patch_embeddings(size):
  module = _Patches((4, 3))
  images = _normal(0, 2, *size, 3)
  variables = module.init(jax.random.key(1), images)
  _assert_the_same_on_cpu(module.apply, variables, images)


@pytest.mark.parametrize(
  ('size', 'stride', 'padding', 'side'),
  [
    (1, 1, 'SAME', 5),
    (1, 2, 'VALID', 5),
    (1, 2, 0, 6),
    (1, 1, 1, 4),
    (3, 1, 'SAME', 28),
    (3, 1, 1, 29),
    (3, 2, 1, 28),
    (3, 1, 'VALID', 28),
  ],
)
def test_convolutions(size, stride, padding, side):
  module = nn.Conv(
    4,
    (size, size),
    stride,
    padding,
    conv_general_dilated=products.convolution,
  )
  x = _normal(0, 2, side, side, 3)
  variables = module.init(jax.random.key(1), x)
  _assert_the_same_on_cpu(module.apply, variables, x, atol=2e-4)


def test_attention_and_maps():
  q, k = _normal(0, 2, 5, 3, 4), _normal(1, 2, 6, 3, 4)
  _assert_the_same_on_cpu(products.attention_logits, q, k)
  maps = _normal(2, 2, 3, 5, 6)
  _assert_the_same_on_cpu(products.attention_output, maps, k)
  _assert_the_same_on_cpu(products.mix_maps, maps, _normal(3, 3, 4))


@pytest.mark.parametrize('activation', GELU)
def test_activations(activation):
  x = 3 * _normal(0, 4, 7)
  _assert_the_same_on_cpu(lambda x: activate(x, activation), x)


def test_exact_gelu_equals_that_of_flax():
  x = jnp.linspace(-12, 12, 2001)
  chex.assert_trees_all_close(
    _with_gradients(GELU['gelu_erf'], x),
    _with_gradients(lambda x: nn.gelu(x, approximate=False), x),
    atol=2e-6,
  )


@pytest.mark.parametrize('platform', ['cpu', 'any'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_layer_norm_equals_that_of_flax(platform, dtype):
  x = (3 * _normal(0, 2, 5, 8) + 2).astype(dtype)
  params = {'params': {'scale': _normal(1, 8), 'bias': _normal(2, 8)}}
  for eps in (1e-6, 0.1):
    ours, theirs = LayerNorm(eps, dtype), nn.LayerNorm(eps, dtype)
    with traced_for(platform):
      chex.assert_trees_all_equal_shapes_and_dtypes(
        ours.init(jax.random.key(0), x), theirs.init(jax.random.key(0), x)
      )
      actual = _with_gradients(ours.apply, params, x)
    expected = _with_gradients(theirs.apply, params, x)
    chex.assert_trees_all_equal_dtypes(actual, expected)
    as_float = lambda tree: jax.tree.map(lambda a: a.astype('float32'), tree)
    atol = 2e-5 if dtype == 'float32' else 0.06
    chex.assert_trees_all_close(as_float(actual), as_float(expected), atol=atol)


def test_layer_norm_of_a_constant_is_finite():
  module = LayerNorm()
  x = jnp.full((1, 3, 8), 1e4)
  result = _with_gradients(module.apply, module.init(jax.random.key(0), x), x)
  chex.assert_tree_all_finite(result)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('shape', 'axes'),
  [
    ((4, 7, 6), 1),
    ((4, 7, 2, 3), 2),
    ((3, 20, 8), 2),
    ((5, 8), 1),
    ((0, 7, 6), 2),
  ],
)
def test_a_parameter_is_added_to_every_row(shape, axes, dtype):
  """Biases, whose rows are many, and positions, whose rows are the examples."""
  x = _normal(0, *shape).astype(dtype)
  parameter = _normal(1, *shape[-axes:]).astype(dtype)
  with traced_for('cpu'):
    y, (of_x, of_parameter) = _with_gradients(
      products.add_parameter, x, parameter
    )
  lead = tuple(range(len(shape) - axes))
  chex.assert_trees_all_equal(y, x + jnp.expand_dims(parameter, lead))
  g = _normal(9, *shape).astype(dtype)
  chex.assert_trees_all_equal(of_x, g)
  assert of_parameter.dtype == parameter.dtype
  chex.assert_trees_all_close(
    of_parameter.astype(jnp.float32),
    g.astype(jnp.float32).sum(lead),
    **{'float32': {'atol': 1e-5}, 'bfloat16': {'rtol': 1e-2}}[dtype],
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(1, 20, 8), (3, 5, 8), (0, 7, 8)])
def test_a_parameter_multiplies_every_row(shape, dtype):
  x, parameter = (
    _normal(i, *n).astype(dtype) for i, n in ((0, shape), (1, [8]))
  )
  with traced_for('cpu'):
    y, (of_x, of_parameter) = _with_gradients(
      products.multiply_parameter, x, parameter
    )
  chex.assert_trees_all_equal(y, x * parameter[None, None])
  g = _normal(9, *shape).astype(dtype)
  chex.assert_trees_all_equal(of_x, g * parameter[None, None])
  assert of_parameter.dtype == parameter.dtype
  chex.assert_trees_all_close(
    of_parameter.astype(jnp.float32),
    (g * x).astype(jnp.float32).sum((0, 1)),
    **{'float32': {'atol': 1e-5}, 'bfloat16': {'rtol': 1e-2, 'atol': 1e-2}}[
      dtype
    ],
  )


def test_what_is_stored_is_computed_once():
  """The users of a stored transposition do not transpose by themselves."""
  x, y = _normal(0, 64, 96), _normal(1, 96, 64)

  def run(keep):
    def function(x, y):
      x = keep(x.T)
      return x * y, x + y

    program = jax.jit(function).lower(x, y).compile()
    return program(x, y), program.as_text()

  values, text = run(stored)
  chex.assert_trees_all_equal(values, run(lambda x: x)[0])
  assert 'conditional(' in text
  for line in text.split('ENTRY')[1].splitlines():
    if ' fusion(' in line and 'f32[96,64]' in line.split(' fusion(')[0]:
      assert '%x' not in line.split(' fusion(')[1].split(')')[0], line
