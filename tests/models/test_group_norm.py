"""GroupNorm: against nn.GroupNorm, with gradients and on every platform."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models.group_norm import GroupNorm
from vit_jax.models.platform import traced_for


def _normal(seed: int, *shape: int, dtype='float32') -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize('platform', ['cpu', 'any'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('shape', 'groups'), [((3, 5, 6, 8), 4), ((2, 7, 8), 1), ((2, 1, 1, 8), 2)]
)
def test_it_equals_flax(shape, groups, dtype, platform):
  x = 3 * _normal(0, *shape, dtype=dtype) + 2
  params = {'scale': 1 + _normal(1, 8), 'bias': _normal(2, 8)}
  g = _normal(3, *shape)

  def run(layer, x):
    def loss(params, x):
      y = layer.apply({'params': params}, x)
      return (y.astype(jnp.float32) * g).sum(), y

    grads, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, grads

  fields = {'num_groups': groups, 'epsilon': 1e-5}
  with traced_for(platform):
    actual = run(GroupNorm(**fields, dtype=dtype), x)
  # Flax rounds each gradient of bfloat16 activations, so it is compared in
  # float32.
  y, grads = run(nn.GroupNorm(**fields), x.astype(jnp.float32))
  assert actual[0].dtype == actual[1][1].dtype == jnp.dtype(dtype)
  close = {'float32': 2e-5, 'bfloat16': 5e-2}[dtype]
  chex.assert_trees_all_close(
    jax.tree.map(lambda x: x.astype(jnp.float32), actual),
    (y, grads),
    atol=close,
    rtol=close,
  )


def test_parameters_are_those_of_flax():
  x = _normal(0, 2, 3, 3, 8)
  layers = GroupNorm(4), nn.GroupNorm(4)
  ours, other = (layer.init(jax.random.key(0), x) for layer in layers)
  chex.assert_trees_all_equal(ours, other)
  zeros = GroupNorm(4, scale_init=nn.initializers.zeros)
  scale = zeros.init(jax.random.key(0), x)['params']['scale']
  chex.assert_trees_all_equal(scale, jnp.zeros(8))


@pytest.mark.parametrize('groups', [0, 3])
def test_groups_that_do_not_divide_the_channels(groups):
  with pytest.raises(ValueError, match=f'8 channels .* num_groups={groups}'):
    GroupNorm(groups).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
