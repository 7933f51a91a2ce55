"""Group normalization, whose sums are computed channel by channel first."""

import functools
import math
from typing import Any

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.fusion import apart
from vit_jax.models.platform import target_platform


class GroupNorm(nn.Module):
  """Group normalization (arXiv:1803.08494), as in Flax.

  The channels of each example form `num_groups` groups. A group is normalized
  by its mean and its biased variance over all positions. Parameters `scale`
  (C,) and `bias` (C,), in float32.

  Attributes:
    num_groups: number of groups, which divides the number of channels.
    epsilon: what is added to the variance.
    dtype: dtype of the result; None means that of x and the parameters.
    scale_init: initializer of `scale`.
  """

  num_groups: int = 32
  epsilon: float = 1e-6
  dtype: DTypeLike | None = None
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B, ..., C); the statistics are computed in float32.

    Raises:
      ValueError: the groups do not divide the channels.
    """
    channels = x.shape[-1]
    if self.num_groups < 1 or channels % self.num_groups:
      raise ValueError(
        f'{channels} channels cannot form num_groups={self.num_groups} groups '
        'of equal size; allowed: a divisor of the number of channels'
      )
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    dtype = self.dtype or jnp.result_type(x, scale, bias)
    axes = tuple(range(x.ndim - 1))
    scale, bias = jnp.expand_dims(scale, axes), jnp.expand_dims(bias, axes)
    if target_platform() == 'cpu':
      y: Any = _normalize_on_cpu(x, scale, bias, self.num_groups, self.epsilon)
    else:
      y = _normalize(x, scale, bias, self.num_groups, self.epsilon)[0]
    return y.astype(dtype)


def _group_means(x: jax.Array, groups: int) -> jax.Array:
  """The mean of each group over its positions: (B, ..., C) -> (B, 1, ..., C).

  Each channel has the mean of its group. The sums of the channels come first:
  the compiler for CPUs needs ten times as long to sum over positions and parts
  of the channels at once.
  """
  positions = range(1, x.ndim - 1)
  sums = x.sum(tuple(positions)).reshape(x.shape[0], groups, -1)
  size = math.prod(x.shape[1:]) // groups
  means = sums.sum(-1, keepdims=True) / size
  means = jnp.broadcast_to(means, sums.shape).reshape(x.shape[0], x.shape[-1])
  return jnp.expand_dims(means, positions)


def _normalize(x, scale, bias, groups, epsilon):
  """The result, and for each channel of x mean and 1 / standard deviation.

  scale and bias have as many axes as x.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  # Both sums convert x while they add, so x in float32 is never stored.
  once, again, x = (x.astype(dtype) for x in apart(x, 3))
  mean = _group_means(once, groups)
  squares = _group_means(again * again, groups)
  # Rounding can make this difference negative.
  variance = jnp.maximum(0.0, squares - mean * mean)
  inverse = jax.lax.rsqrt(variance + epsilon)
  return (x - mean) * (inverse * scale) + bias, mean, inverse


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize_on_cpu(x, scale, bias, groups, epsilon):
  """`_normalize` whose gradient keeps x, and no array of its size besides."""
  return _normalize(x, scale, bias, groups, epsilon)[0]


def _forward(x, scale, bias, groups, epsilon):
  y, mean, inverse = _normalize(x, scale, bias, groups, epsilon)
  return y, (x, scale, mean, inverse)


def _backward(groups, epsilon, kept, g):
  del epsilon
  # The barrier keeps the compiler from storing the normalized x of the forward
  # pass instead of computing it again.
  (x, scale, mean, inverse), g = jax.lax.optimization_barrier((kept, g))
  normalized = (x.astype(g.dtype) - mean) * inverse
  # Both sums of each channel serve the parameters and the groups.
  positions = tuple(range(1, x.ndim - 1))
  of_bias = g.sum(positions, keepdims=True)
  of_scale = (g * normalized).sum(positions, keepdims=True)
  size = math.prod(x.shape[1:-1])  # number of positions
  of_mean = _group_means(of_bias * scale, groups) / size
  of_deviation = _group_means(of_scale * scale, groups) / size
  grad_x = inverse * (g * scale - of_mean - normalized * of_deviation)
  grad_scale = of_scale.sum(0, keepdims=True)
  return grad_x.astype(x.dtype), grad_scale, of_bias.sum(0, keepdims=True)


_normalize_on_cpu.defvjp(_forward, _backward)
