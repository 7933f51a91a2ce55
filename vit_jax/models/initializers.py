"""Initializers of the code bases that the models come from.

Parameters are initialized as in the code that a model was published with. The
distributions differ between Google's code, timm, and PyTorch's own defaults.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

# timm's linear layers and tables. Its trunc_normal_ cuts at -2 and 2, which are
# 100 standard deviations, so the distribution is normal.
normal02 = nn.initializers.normal(0.02)

# PyTorch's default for convolutions and linear layers: uniform between
# -1/sqrt(fan_in) and 1/sqrt(fan_in), for kernels and for biases.
torch_conv_kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def torch_conv_bias(fan_in: int) -> Initializer:
  """The initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of PyTorch's biases."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


def zero_bias(fan_in: int) -> Initializer:
  """Zeros, whatever the fan-in."""
  del fan_in
  return nn.initializers.zeros


class Initializers(NamedTuple):
  """The initializers of one code base.

  Attributes:
    kernel: of the attention's projections and of the MLP.
    bias: of the attention's projections, a function of the fan-in.
    mlp_bias: of the MLP's layers, a function of the fan-in.
    patch_kernel: of the patch embedding.
    patch_bias: of the patch embedding, a function of the fan-in.
    table: of position embeddings, a function of the width.
    token: of learned tokens.
    head: of the kernel of the classification head.
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
# The area-attention project initializes nothing itself: PyTorch draws its
# linear layers as above, and torch.randn gives tables and tokens N(0, 1).
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
