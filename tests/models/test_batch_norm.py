"""BatchNorm: against nn.BatchNorm, groups, sharding, running statistics."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vit_jax.models.batch_norm import BatchNorm

X = 3 * np.random.default_rng(0).standard_normal((8, 3, 5, 4)) + 1
X = X.astype(np.float32)
VARIABLES = {
  'params': {'scale': jnp.arange(1.0, 5), 'bias': jnp.arange(4.0)},
  'batch_stats': {'mean': jnp.full(4, 0.3), 'var': jnp.full(4, 1.7)},
}


def run(x, variables=VARIABLES, train=True, **fields):
  return BatchNorm(**fields).apply(variables, x, train, mutable=['batch_stats'])


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('axis', [-1, 1])
def test_one_group_is_flax(train, axis):
  x = jnp.moveaxis(jnp.asarray(X), -1, axis)
  y, stats = run(x, train=train, axis=axis, unbiased=False)
  want, want_stats = nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, axis=axis
  ).apply(VARIABLES, x, mutable=['batch_stats'])
  chex.assert_trees_all_close(y, want, atol=1e-5)
  chex.assert_trees_all_close(stats, want_stats, atol=1e-6)


def test_running_variance_is_unbiased_as_in_pytorch():
  torch = pytest.importorskip('torch')
  _, stats = run(X)
  norm = torch.nn.BatchNorm2d(4)
  norm.running_mean.fill_(0.3)
  norm.running_var.fill_(1.7)
  norm.train()(torch.from_numpy(X).permute(0, 3, 1, 2))
  got = stats['batch_stats']
  np.testing.assert_allclose(got['mean'], norm.running_mean, atol=1e-6)
  np.testing.assert_allclose(got['var'], norm.running_var, atol=1e-5)
  biased = run(X, unbiased=False)[1]['batch_stats']['var']
  assert np.abs(got['var'] - biased).min() > 1e-4


def test_one_value_per_channel_is_an_error():
  x = jnp.ones((2, 1, 1, 4))
  run(x)
  with pytest.raises(ValueError, match=r'one value per channel.*\(2, 1, 1, 4'):
    run(x, groups=2)
  run(x[:1], train=False)


def test_initial_variables():
  got = BatchNorm().init(jax.random.key(0), X, True)
  want = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
  chex.assert_trees_all_equal(got, want)


def test_groups_are_batches_of_their_own():
  y, stats = run(X, groups=4)
  groups = [run(x) for x in np.split(X, 4)]
  np.testing.assert_allclose(
    y, np.concatenate([p[0] for p in groups]), atol=1e-5
  )
  mean = jax.tree.map(lambda *s: sum(s) / 4, *[p[1] for p in groups])
  chex.assert_trees_all_close(stats, mean, atol=1e-6)
  assert np.abs(y - run(X)[0]).max() > 0.1  # not the global statistics
  with pytest.raises(ValueError, match='bn_groups=3 does not divide .* 8'):
    run(X, groups=3)
  chex.assert_trees_all_close(  # groups do not matter in evaluation
    run(X, train=False, groups=3)[0], run(X, train=False)[0]
  )


@pytest.mark.parametrize('groups', [1, 8])
def test_sharding_changes_nothing(groups):
  """Global statistics stay global, and groups need no communication."""
  mesh = Mesh(np.array(jax.devices()), ('data',))
  step = jax.jit(
    lambda x: run(x, groups=groups),
    out_shardings=(NamedSharding(mesh, P('data')), None),
  )
  sharded = jax.device_put(X, NamedSharding(mesh, P('data')))
  got, want = step(sharded), run(X, groups=groups)
  chex.assert_trees_all_close(got, want, atol=1e-5)
  if groups == 8:
    only_y = jax.jit(lambda x: step(x)[0]).lower(sharded).compile().as_text()
    assert 'all-reduce' not in only_y and 'all-gather' not in only_y


def test_low_precision_keeps_statistics_in_float32():
  y, stats = run(jnp.asarray(X, jnp.bfloat16), dtype=jnp.bfloat16)
  assert y.dtype == jnp.bfloat16
  assert all(s.dtype == jnp.float32 for s in jax.tree.leaves(stats))
  np.testing.assert_allclose(y.astype(np.float32), run(X)[0], atol=0.1)
