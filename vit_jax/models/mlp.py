"""The MLP of a transformer block."""

import functools

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.dense import Dense
from vit_jax.models.dropout import Dropout
from vit_jax.models.initializers import normal02


class MlpBlock(nn.Module):
  """Dense, GELU, dropout, Dense, dropout.

  Parameters `Dense_0` (D, mlp_dim) and `Dense_1` (mlp_dim, D).

  Attributes:
    mlp_dim: width of the hidden layer.
    dropout: rate of both dropouts, in training.
    activation: key of `activations.GELU`.
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
    y = Dense(
      self.mlp_dim,
      activation=self.activation,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      name='Dense_0',
    )(x)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = Dense(
      x.shape[-1],
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init_out or self.bias_init,
      before_dropout=train and self.dropout > 0,
      name='Dense_1',
    )(y)
    return Dropout(self.dropout, deterministic=not train)(y)


# The MLP `mlp` of models whose authors initialize as timm does: CaiT, CeiT,
# DeepViT and VOLO.
timm_mlp = functools.partial(
  MlpBlock, kernel_init=normal02, bias_init=nn.initializers.zeros, name='mlp'
)
