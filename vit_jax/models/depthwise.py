"""Depth-wise convolution: every channel is convolved by itself."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel


class DepthwiseConv(nn.Module):
  """A convolution of each channel by itself.

  Computed as a sum of shifted products, which XLA fuses into one pass. Its
  grouped convolution with one channel per group is far slower on a CPU.

  Parameters `kernel` (size, size, 1, C) and `bias` (C,).

  Attributes:
    size: of the kernel.
    stride: of both axes.
    padding: (before, after) of rows and of columns, zeros.
    use_bias: whether there is a bias.
    dtype: of the activations.
    kernel_init: of the kernel.
  """

  size: int = 3
  stride: int = 1
  padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1))
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Initializer = torch_conv_kernel

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H', W', C)."""
    channels = x.shape[-1]
    kernel = self.param(
      'kernel', self.kernel_init, (self.size, self.size, 1, channels)
    ).astype(self.dtype)
    x = jnp.pad(x.astype(self.dtype), ((0, 0), *self.padding, (0, 0)))
    height, width = ((n - self.size) // self.stride + 1 for n in x.shape[1:3])
    y = jnp.zeros((), self.dtype)
    for i in range(self.size):
      for j in range(self.size):
        shifted = jax.lax.slice(
          x,
          (0, i, j, 0),
          (
            x.shape[0],
            i + (height - 1) * self.stride + 1,
            j + (width - 1) * self.stride + 1,
            channels,
          ),
          (1, self.stride, self.stride, 1),
        )
        y = y + shifted * kernel[i : i + 1, j : j + 1]
    if self.use_bias:
      bias = self.param('bias', torch_conv_bias(self.size**2), (channels,))
      y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y
