"""Dropout and stochastic depth."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def keep_mask(key: jax.Array, keep: float, shape: Sequence[int]) -> jax.Array:
  """Bernoulli(keep) booleans of a shape, by a hash of key and position.

  On a TPU, a threefry mask costs as much as the rest of a block, because each
  number takes 20 rounds. Here the position is spread over 32 bits by the golden
  ratio and mixed with the key in two multiply-xorshift rounds (constants found
  by search: https://github.com/skeeto/hash-prospector). Without the spreading,
  positions some rows apart are correlated by 4 %. The usual last xorshift is
  left out, because only the leading bits decide the comparison.

  As with partitionable threefry, a number depends on its global position alone,
  not on how the array is split over devices.
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

  The same as nn.Dropout, with the masks of `keep_mask`.

  Attributes:
    rate: at least 0, below 1.
    deterministic: returns the input as it is.
  """

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Any shape; ValueError for a rate that is not allowed."""
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

  Attributes:
    rescale: divides the kept branches by the keep probability. big_vision's
      Mixer does not.
  """

  rescale: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> jax.Array:
    """Drops branches in training.

    Args:
      x: the output of a branch, (B, ...).
      rate: probability of a drop. It is an argument, so that scanned blocks,
        which share their fields, can differ in it.
      train: without it, x is returned as it is.
    """
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
