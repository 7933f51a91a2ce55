"""Stored parts of parameters become whole parameters with the same values."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vit_jax.parallel.mesh import make_mesh
from vit_jax.training.whole_params import whole_arrays, whole_params

SPECS = {
  'kernel': P('fsdp', 'tensor'),
  'both': P(('fsdp', 'tensor'), None),
  'used twice': P(None, 'fsdp'),
  'bias': P(),
}


@pytest.fixture(name='stored')
def stored_arrays():
  mesh = make_mesh('zero', fsdp=4, tensor=2)
  random = np.random.default_rng(0)
  shardings = {k: NamedSharding(mesh, s) for k, s in SPECS.items()}
  return (
    mesh,
    shardings,
    {
      k: jax.device_put(random.normal(size=(8, 4)).astype('f4'), s)
      for k, s in shardings.items()
    },
  )


def test_what_is_only_converted_is_sent_converted(stored):
  mesh, shardings, params = stored

  def loss(p):
    small = {k: x.astype(jnp.bfloat16) for k, x in p.items()}
    return sum(x.sum() for x in small.values()) + p['used twice'].sum()

  with jax.set_mesh(mesh):
    whole = jax.jit(lambda p: whole_params(loss, p, shardings))(params)
  types = {k: x.dtype.name for k, x in whole.items()}
  assert types == {
    'kernel': 'bfloat16',
    'both': 'bfloat16',
    'used twice': 'float32',
    'bias': 'float32',  # each device has all of it already
  }
  for name, spec in {'kernel': P(None, 'tensor'), 'both': P('tensor')}.items():
    assert whole[name].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
  assert whole['used twice'].sharding.is_fully_replicated
  for name, x in whole.items():
    np.testing.assert_array_equal(x, params[name].astype(x.dtype))
  grads = jax.grad(lambda p: loss(p).astype(jnp.float32))(whole)
  assert grads['kernel'].dtype == jnp.bfloat16


def test_arrays_become_whole_and_stay_the_same(stored):
  _, _, params = stored
  whole = whole_arrays(params)
  assert whole['kernel'].sharding.spec == P(None, 'tensor')
  assert whole['used twice'].sharding.is_fully_replicated
  for name, x in whole.items():
    np.testing.assert_array_equal(x, params[name])
  assert whole_arrays(whole) is whole  # nothing is left to do
