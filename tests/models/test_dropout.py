"""Dropout: its masks are uniform, uncorrelated, the same on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.dropout import Dropout, keep_mask


def test_keep_mask_is_uniform_and_uncorrelated():
  shape = (64, 49, 96)
  n = np.prod(shape)
  masks = [
    np.asarray(keep_mask(k, 0.7, shape))
    for k in jax.random.split(jax.random.key(0), 4)
  ]
  limit = 5 * np.sqrt(0.21 / n)  # five standard deviations
  centered = [m - 0.7 for m in masks]
  for m in centered:
    assert abs(m.mean()) < limit
    for axis in range(3):  # of every row, column and example
      means = m.mean(tuple(a for a in range(3) if a != axis))
      assert abs(means).max() < 5 * np.sqrt(0.21 / (n / shape[axis]))
      # Entries at several distances along an axis are not correlated.
      for shift in (1, 2, 16, 32):
        rolled = np.roll(m, shift, axis)
        assert abs((m * rolled).mean()) < 5 * 0.21 / np.sqrt(n)
  for i in range(4):
    for j in range(i):
      assert abs((centered[i] * centered[j]).mean()) < 5 * 0.21 / np.sqrt(n)


@pytest.mark.parametrize('keep', [0.5, 0.9])
def test_keep_mask_of_positions_some_rows_apart(keep):
  """The correlation of entries at a distance is zero, over many keys."""
  shape, width = (8, 197, 512), 512
  n, variance = np.prod(shape), keep * (1 - keep)
  lags = [
    *range(1, 32),
    *(width * i for i in range(1, 32)),
    *(197 * width * i for i in range(1, 8)),
    2**12,
    2**15,
    2**16,
  ]
  make = jax.jit(lambda key: keep_mask(key, keep, shape))
  scores = []
  for key in jax.random.split(jax.random.key(5), 6):
    m = np.asarray(make(key)).ravel().astype(np.float32) - keep
    scores += [
      np.dot(m[lag:], m[:-lag]) / variance / np.sqrt(n - lag) for lag in lags
    ]
  assert 0.9 < np.std(scores) < 1.1  # of 432 standard normal numbers
  assert np.abs(scores).max() < 5


def test_keep_mask_of_related_keys():
  """Keys that differ in one word or one bit give unrelated masks."""
  shape = (1 << 16,)
  base = np.array([123, 456], np.uint32)
  make = lambda data: (
    np.asarray(
      keep_mask(jax.random.wrap_key_data(jnp.asarray(data)), 0.5, shape)
    )
    - 0.5
  )
  first = make(base)
  for word in (0, 1):
    for bit in range(0, 32, 3):
      other = make(
        base
        ^ np.array(
          [(1 << bit) * (word == 0), (1 << bit) * (word == 1)], np.uint32
        )
      )
      assert abs((first * other).mean()) < 5 * 0.25 / np.sqrt(shape[0])


def test_dropout_is_unbiased_and_off_in_evaluation():
  x = jnp.ones((64, 1000), jnp.bfloat16)
  apply = lambda rate, off: Dropout(rate, deterministic=off).apply(
    {}, x, rngs={'dropout': jax.random.key(1)}
  )
  y = np.asarray(apply(0.25, False), np.float32)
  assert set(np.unique(y)) == {0.0, np.float32(jnp.bfloat16(1 / 0.75))}
  assert abs((y == 0).mean() - 0.25) < 0.01
  assert apply(0.25, True) is x and apply(0.0, False) is x
  with pytest.raises(ValueError, match='dropout=1.0'):
    apply(1.0, False)


@pytest.mark.parametrize('devices', [1, 4, 8])
def test_dropout_does_not_depend_on_the_devices(devices):
  mesh = jax.make_mesh((devices,), ('data',), devices=jax.devices()[:devices])
  x = jax.device_put(
    jnp.ones((16, 6, 8)), jax.NamedSharding(mesh, jax.P('data'))
  )
  apply = jax.jit(
    lambda x: Dropout(0.5, deterministic=False).apply(
      {}, x, rngs={'dropout': jax.random.key(7)}
    )
  )
  np.testing.assert_array_equal(apply(x), apply(jnp.ones((16, 6, 8))))
