"""Layer normalization, with a gradient that keeps only its input."""

from typing import Any

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.fusion import apart
from vit_jax.models.platform import on_one_cpu, target_platform


class LayerNorm(nn.Module):
  """Layer normalization over the last axis (arXiv:1607.06450), as in Flax.

  Parameters `scale` (D,) and `bias` (D,), in float32.

  Attributes:
    epsilon: what is added to the variance.
    dtype: dtype of the result; None means that of x and the parameters.
    scale_init, bias_init: initializers of the parameters.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike | None = None
  scale_init: Initializer = nn.initializers.ones
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., D) -> (..., D); the statistics are computed in float32."""
    scale = self.param('scale', self.scale_init, (x.shape[-1],))
    bias = self.param('bias', self.bias_init, (x.shape[-1],))
    dtype = self.dtype or jnp.result_type(x, scale, bias)
    axes = tuple(range(x.ndim - 1))
    scale, bias = jnp.expand_dims(scale, axes), jnp.expand_dims(bias, axes)
    if target_platform() != 'cpu':
      return _normalize(x, scale, bias, self.epsilon)[0].astype(dtype)
    rows = x
    if on_one_cpu():
      # A matrix, because sums of products are slow where the first axis has
      # length 1, as that of one image (`fusion.row_products`).
      rows, scale, bias = (y.reshape(-1, x.shape[-1]) for y in (x, scale, bias))
    y: Any = _normalize_on_cpu(rows, scale, bias, self.epsilon)
    return y.astype(dtype).reshape(x.shape)


def _normalize(x, scale, bias, epsilon):
  """The result, the means of x and the inverses of its standard deviations.

  scale and bias have as many axes as x.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  # Both sums convert x while they add, so x in float32 is never stored.
  once, again, x = (x.astype(dtype) for x in apart(x, 3))
  mean = once.mean(-1, keepdims=True)
  squares = (again * again).mean(-1, keepdims=True)
  # Rounding can make this difference negative.
  variance = jnp.maximum(0.0, squares - mean * mean)
  inverse = jax.lax.rsqrt(variance + epsilon)
  return (x - mean) * (inverse * scale) + bias, mean, inverse


@jax.custom_vjp
def _normalize_on_cpu(x, scale, bias, epsilon):
  """`_normalize` whose gradient keeps x, and no array of its size besides."""
  return _normalize(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
  y, mean, inverse = _normalize(x, scale, bias, epsilon)
  return y, (x, scale, mean, inverse)


def _backward(kept, g):
  # The barrier keeps the compiler from storing the normalized x of the forward
  # pass instead of computing it again.
  (x, scale, mean, inverse), g = jax.lax.optimization_barrier((kept, g))
  normalized = (x.astype(g.dtype) - mean) * inverse
  axes = tuple(range(x.ndim - 1))
  scaled = g * scale
  of_mean = scaled.mean(-1, keepdims=True)
  of_deviation = (scaled * normalized).mean(-1, keepdims=True)
  grad_x = inverse * (scaled - of_mean - normalized * of_deviation)
  grad_scale = (g * normalized).sum(axes, keepdims=True)
  grad_bias = g.sum(axes, keepdims=True)
  return grad_x.astype(x.dtype), grad_scale, grad_bias, None


_normalize_on_cpu.defvjp(_forward, _backward)
