"""Dropout and stochastic depth."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def keep_mask(key: jax.Array, keep: float, shape: Sequence[int]) -> jax.Array:
  """A mask whose entries are True with probability `keep`.

  An entry is a hash of the key and the entry's position. JAX's own generator,
  threefry, takes 20 rounds per number, so on a TPU a mask costs as much as the
  rest of a block. Here the position is multiplied by the golden ratio, which
  spreads it over 32 bits, and mixed with the key in two multiply-xorshift
  rounds, with constants of https://github.com/skeeto/hash-prospector. Without
  the multiplication, entries some rows apart have a correlation of 4 %. Such
  hashes usually end with another xorshift, which changes only the trailing
  bits; the comparison below depends on the leading ones.

  As with partitionable threefry, an entry depends on its position in the whole
  array and not on how the array is split over devices.

  Args:
    key: PRNG key.
    keep: probability of True.
    shape: shape of the mask.

  Returns:
    bool array of `shape`.
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

  It is `flax.linen.Dropout` with masks from `keep_mask`.

  Attributes:
    rate: a number in [0, 1).
    deterministic: True returns the input as it is.
  """

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Drops entries of an array of any shape (rng stream 'dropout').

    Raises:
      ValueError: the rate is not in [0, 1).
    """
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
    rescale: whether the kept branches are divided by their probability, as
      everywhere except in big_vision's Mixer.
  """

  rescale: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> jax.Array:
    """Drops branches in training.

    Args:
      x: the output of a branch, (B, ...).
      rate: probability that an example's branch is dropped. It is an argument
        and not a field, because scanned blocks share their fields.
      train: False returns x as it is.

    Returns:
      The shape of x, with zeros for the examples that are dropped.
    """
    if not train or (isinstance(rate, (int, float)) and rate == 0):
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    scale = mask / keep if self.rescale else mask
    return x * scale.astype(x.dtype)


def drop_path_rates(rate: float, depth: int) -> list[float]:
  """Drop-path rates that rise linearly from 0 at the first block to `rate`."""
  return [rate * i / max(1, depth - 1) for i in range(depth)]
