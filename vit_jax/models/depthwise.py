"""Depth-wise convolution: every channel has its own kernel and one input."""

from collections.abc import Sequence
import functools

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel


@functools.partial(jax.jit, static_argnames='stride')
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves each channel with its own kernel, without padding.

  It is computed as a sum of products with shifted slices, which XLA fuses into
  one pass. XLA's grouped convolution with one channel per group is far slower
  on a CPU. The function is jitted because `flops` recognizes it by its name in
  a jaxpr.

  Args:
    x: (B, H, W, C).
    kernel: (h, w, 1, C).
    stride: stride along both axes.

  Returns:
    (B, (H - h) / stride + 1, (W - w) / stride + 1, C); the quotients are
    rounded down.
  """
  rows, columns = kernel.shape[:2]
  height = (x.shape[1] - rows) // stride + 1
  width = (x.shape[2] - columns) // stride + 1
  y = jnp.zeros((), x.dtype)
  for i in range(rows):
    for j in range(columns):
      last = (i + (height - 1) * stride + 1, j + (width - 1) * stride + 1)
      shifted = jax.lax.slice(
        x,
        (0, i, j, 0),
        (x.shape[0], *last, x.shape[3]),
        (1, stride, stride, 1),
      )
      y = y + shifted * kernel[i : i + 1, j : j + 1]
  return y


class DepthwiseConv(nn.Module):
  """A layer that convolves each channel with its own kernel.

  Parameters `kernel` (size, size, 1, C) and `bias` (C,).

  Attributes:
    size: height and width of the kernel.
    stride: stride along both axes.
    padding: numbers of zeros (before, after), for rows and for columns.
    use_bias: whether there is a bias.
    dtype: dtype of the activations.
    kernel_init: initializer of the kernel.
  """

  size: int = 3
  stride: int = 1
  padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1))
  use_bias: bool = True
  dtype: DTypeLike = jnp.float32
  kernel_init: Initializer = torch_conv_kernel

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H', W', C)."""
    channels = x.shape[-1]
    kernel = self.param(
      'kernel', self.kernel_init, (self.size, self.size, 1, channels)
    ).astype(self.dtype)
    x = jnp.pad(x.astype(self.dtype), ((0, 0), *self.padding, (0, 0)))
    y = depthwise_conv(x, kernel, self.stride)
    if self.use_bias:
      bias = self.param('bias', torch_conv_bias(self.size**2), (channels,))
      y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y
