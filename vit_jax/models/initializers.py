"""Initializers of the code bases that the models come from.

A model's parameters are initialized as in the code that its authors published.
Google's code, timm and PyTorch's defaults have different distributions.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

# timm's initializer of linear layers and tables, trunc_normal_(std=0.02). It
# truncates at -2 and 2, which are 100 standard deviations, so it is normal.
normal02 = nn.initializers.normal(0.02)

# PyTorch's default for kernels of convolutions and linear layers:
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_conv_kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def symmetric_uniform(bound: float) -> Initializer:
  """The initializer U(-bound, bound)."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


def torch_conv_bias(fan_in: int) -> Initializer:
  """The initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of PyTorch's biases."""
  return symmetric_uniform(fan_in**-0.5)


def zero_bias(fan_in: int) -> Initializer:
  """The initializer of biases that are 0 for every fan-in."""
  del fan_in
  return nn.initializers.zeros


class Initializers(NamedTuple):
  """The initializers of one code base.

  Attributes:
    kernel: for kernels of the attention's projections and of the MLP.
    bias: function of the fan-in, for biases of the attention's projections.
    mlp_bias: function of the fan-in, for biases of the MLP's layers.
    patch_kernel: for the kernel of the patch embedding.
    patch_bias: function of the fan-in, for the bias of the patch embedding.
    table: function of the width, for position tables.
    token: for learned tokens.
    head: for the kernel of the classification head.
  """

  kernel: Initializer
  bias: Callable[[int], Initializer]
  mlp_bias: Callable[[int], Initializer]
  patch_kernel: Initializer
  patch_bias: Callable[[int], Initializer]
  table: Callable[[int], Initializer]
  token: Initializer
  head: Initializer


GOOGLE = Initializers(
  kernel=nn.initializers.xavier_uniform(),
  bias=zero_bias,
  mlp_bias=lambda fan_in: nn.initializers.normal(1e-6),
  patch_kernel=nn.initializers.lecun_normal(),
  patch_bias=zero_bias,
  table=lambda width: normal02,
  token=nn.initializers.zeros,
  head=nn.initializers.zeros,
)
BIG_VISION = GOOGLE._replace(
  table=lambda width: nn.initializers.normal(width**-0.5)
)
TIMM = Initializers(
  kernel=normal02,
  bias=zero_bias,
  mlp_bias=zero_bias,
  patch_kernel=torch_conv_kernel,
  patch_bias=torch_conv_bias,
  table=lambda width: normal02,
  token=normal02,
  head=normal02,
)
# The area-attention project leaves linear layers with PyTorch's defaults, and
# makes tables and tokens by torch.randn, from N(0, 1).
TORCH = Initializers(
  kernel=torch_conv_kernel,
  bias=torch_conv_bias,
  mlp_bias=torch_conv_bias,
  patch_kernel=torch_conv_kernel,
  patch_bias=torch_conv_bias,
  table=lambda width: nn.initializers.normal(1.0),
  token=nn.initializers.normal(1.0),
  head=torch_conv_kernel,
)
# The allowed values of the field `init_style`.
INITIALIZERS = {
  'google': GOOGLE,
  'big_vision': BIG_VISION,
  'timm': TIMM,
  'torch': TORCH,
}
