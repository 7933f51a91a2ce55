"""The MLP block of a transformer, and activations."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from vit_jax.models.dropout import Dropout
from vit_jax.models.tpu_layout import product

GELU = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'gelu_erf': functools.partial(nn.gelu, approximate=False),
}


class MlpBlock(nn.Module):
  """Dense -> GELU -> Dense (`Dense_0`, `Dense_1`), dropout after each."""

  mlp_dim: int
  dropout: float = 0.0
  activation: str = 'gelu_tanh'  # key of GELU
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.normal(1e-6)
  bias_init_out: Callable | None = None  # of Dense_1; None: as bias_init

  @nn.compact
  def __call__(self, x, train: bool):
    """(..., D) -> (..., D)."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init
    )
    y = dense(self.mlp_dim, bias_init=self.bias_init)(x)
    y = GELU[self.activation](y)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = dense(
      x.shape[-1],
      bias_init=self.bias_init_out or self.bias_init,
      dot_general=functools.partial(
        product, before_dropout=train and self.dropout > 0
      ),
    )(y)
    return Dropout(self.dropout, deterministic=not train)(y)
