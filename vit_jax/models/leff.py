"""The locally enhanced feed-forward of CeiT (arXiv:2103.11816, eq. 6-10)."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.activations import activate
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.dense import Dense
from vit_jax.models.depthwise import DepthwiseConv
from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel


class LeFF(nn.Module):
  """Three convolutions, each followed by BatchNorm (eq. 6-10).

  They are 1x1 to `hidden` channels, 3x3 depth-wise, and 1x1 to D channels; a
  GELU follows the first two.

  Attributes:
    hidden: channels of the first two convolutions.
    gelu3: whether a GELU follows the last one too (eq. 10).
    depthwise_bias: whether the depth-wise convolution has a bias.
    activation: key of `activations.GELU`.
    batch_norm: function that makes the BatchNorm modules.
    dtype: dtype of the activations.
  """

  hidden: int
  gelu3: bool = False
  depthwise_bias: bool = True
  activation: str = 'gelu_erf'
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """A map of patches (B, h, w, D) -> (B, h, w, D)."""
    width = x.shape[-1]
    gelu = functools.partial(activate, activation=self.activation)
    norm = functools.partial(self.batch_norm, dtype=self.dtype)
    # 1x1 convolutions in the released code, so they are initialized as PyTorch
    # initializes convolutions.
    conv1x1 = lambda features, fan_in, name: Dense(
      features,
      dtype=self.dtype,
      kernel_init=torch_conv_kernel,
      bias_init=torch_conv_bias(fan_in),
      name=name,
    )
    x = conv1x1(self.hidden, width, 'conv1')(x)
    x = gelu(norm(name='bn1')(x, train))
    x = DepthwiseConv(
      use_bias=self.depthwise_bias, dtype=self.dtype, name='conv2'
    )(x)
    x = gelu(norm(name='bn2')(x, train))
    x = conv1x1(width, self.hidden, 'conv3')(x)
    x = norm(name='bn3')(x, train)
    return gelu(x) if self.gelu3 else x
