"""The MLP of a transformer block, and its activations."""

import functools
import math

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.dropout import Dropout
from vit_jax.models.initializers import normal02
from vit_jax.models.platform import target_platform
from vit_jax.models.products import dot_general


def _gelu_erf(x: jax.Array) -> jax.Array:
  """GELU (arXiv:1606.08415) as PyTorch computes it.

  `nn.gelu` uses erfc, which takes several times as long on a CPU.
  """
  half = 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))
  return x * half.astype(x.dtype)


# The allowed values of `activation`. Google's code uses the tanh approximation
# of GELU, PyTorch the exact function, and OpenAI's CLIP a sigmoid.
GELU = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'gelu_erf': _gelu_erf,
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}


def activate(x: jax.Array, activation: str) -> jax.Array:
  """Applies an activation.

  On a CPU, its gradient is computed from x alone. Otherwise up to three arrays
  of the size of x would be kept for it, and the time to write and read them is
  longer than that of computing them again.

  Args:
    x: the output of the hidden layer, of any shape.
    activation: key of GELU.
  """
  function = GELU[activation]
  if target_platform() == 'cpu':
    function = jax.checkpoint(function)
  return function(x)


class MlpBlock(nn.Module):
  """Dense, GELU, dropout, Dense, dropout.

  Parameters `Dense_0` (D, mlp_dim) and `Dense_1` (mlp_dim, D).

  Attributes:
    mlp_dim: width of the hidden layer.
    dropout: rate of both dropouts, in training.
    activation: key of GELU.
    dtype: dtype of the activations.
    kernel_init, bias_init: initializers of both layers.
    bias_init_out: initializer of the bias of `Dense_1`; None means `bias_init`.
  """

  mlp_dim: int
  dropout: float = 0.0
  activation: str = 'gelu_tanh'
  dtype: DTypeLike = jnp.float32
  kernel_init: Initializer = nn.initializers.xavier_uniform()
  bias_init: Initializer = nn.initializers.normal(1e-6)
  bias_init_out: Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(..., D) -> (..., D); `train` turns dropout on (rng stream 'dropout')."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init
    )
    y = dense(self.mlp_dim, bias_init=self.bias_init, dot_general=dot_general)(
      x
    )
    y = activate(y, self.activation)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = dense(
      x.shape[-1],
      bias_init=self.bias_init_out or self.bias_init,
      dot_general=functools.partial(
        dot_general, before_dropout=train and self.dropout > 0
      ),
    )(y)
    return Dropout(self.dropout, deterministic=not train)(y)


# The MLP `mlp` of models whose authors initialize as timm does: CaiT, CeiT,
# DeepViT and VOLO.
timm_mlp = functools.partial(
  MlpBlock, kernel_init=normal02, bias_init=nn.initializers.zeros, name='mlp'
)
