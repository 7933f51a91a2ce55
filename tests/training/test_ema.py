"""The moving average: closed forms, and the values that a run averages."""

import chex
import jax.numpy as jnp
import numpy as np

from vit_jax.training.ema import ema_update


def test_ema_closed_form():
  values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  ema = {'a': jnp.asarray(values[0])}
  for v in values[1:]:
    ema = ema_update(ema, {'a': jnp.asarray(v)}, 0.9)
  weights = np.array([0.9**5] + [0.1 * 0.9 ** (5 - i) for i in range(1, 6)])
  chex.assert_trees_all_close(ema['a'], weights @ values, atol=1e-6)


def test_ema_ramp():
  a, b = {'a': jnp.ones(3)}, {'a': jnp.zeros(3)}
  for step, decay in ((0, 0.1), (8, 0.5), (10**6, 0.999)):
    chex.assert_trees_all_close(
      ema_update(a, b, 0.999, step)['a'], jnp.full(3, decay), rtol=1e-5
    )


def test_ema_of_unmoved_parameters_is_bit_equal():
  values = np.random.default_rng(1).normal(size=99).astype(np.float32)
  params = {'a': jnp.asarray(values)}
  chex.assert_trees_all_equal(ema_update(params, params, 0.9999, 17), params)
