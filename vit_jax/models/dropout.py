"""Dropout and stochastic depth."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def keep_mask(key: jax.Array, keep: float, shape) -> jax.Array:
  """Bernoulli(keep) booleans of a shape, by a hash of key and position.

  A threefry mask costs as much as the rest of a block on a TPU: 20 rounds for
  each number. Here a position is spread over 32 bits by the golden ratio, and
  mixed with the key by two multiply-xorshift rounds (constants found by search:
  https://github.com/skeeto/hash-prospector), which a TPU hides in part behind
  the memory traffic. Without the spreading, positions some rows apart are
  correlated (by 4 %). Only the leading bits count in the comparison, so the
  last xorshift is left out. As with partitionable threefry, a number depends
  on its global position alone, not on how the array is split.
  """
  data = jax.random.key_data(key).astype(jnp.uint32)
  x, stride = data[0], 0x9E3779B9
  for axis in reversed(range(len(shape))):
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = x + index * np.uint32(stride % 2**32)
    stride *= shape[axis]
  x = x ^ data[-1]
  x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
  return x < np.uint32(min(2**32 - 1, round(keep * 2**32)))


class Dropout(nn.Module):
  """Zeroes entries with probability `rate`, divides the others by 1 - rate.

  As nn.Dropout, with the masks of `keep_mask`.
  """

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x):
    """Any shape."""
    if not 0 <= self.rate < 1:
      raise ValueError(f'dropout={self.rate} must be at least 0 and below 1')
    if self.deterministic or self.rate == 0:
      return x
    keep = 1.0 - self.rate
    mask = keep_mask(self.make_rng('dropout'), keep, x.shape)
    scaled = x.astype(jnp.float32) * (1 / keep)
    return jnp.where(mask, scaled, 0.0).astype(x.dtype)


class DropPath(nn.Module):
  """Stochastic depth (arXiv:1603.09382): drops a residual branch per example.

  The kept branches are divided by the keep probability unless `rescale` is
  False (big_vision's Mixer). `rate` is an argument, not a field, so that
  scanned blocks can each have their own.
  """

  rescale: bool = True

  @nn.compact
  def __call__(self, x, rate, train: bool):
    if not train or (isinstance(rate, (int, float)) and rate == 0):
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    scale = mask / keep if self.rescale else mask
    return x * scale.astype(x.dtype)


def drop_path_rates(rate: float, depth: int) -> list[float]:
  """Linear schedule: 0 at the first block, `rate` at the last."""
  return [rate * i / max(1, depth - 1) for i in range(depth)]
