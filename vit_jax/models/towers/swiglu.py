"""SwiGLU: an MLP with a gate (arXiv:2002.05202, section 2).

It is the MLP of DINOv2's g/14 (arXiv:2304.07193) and of AIMv2
(arXiv:2411.14402).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.dense import Dense
from vit_jax.models.dropout import Dropout


class SwiGLU(nn.Module):
  """(SiLU(x W) * x V) W2, with the layers `gate`, `Dense_0` and `Dense_1`."""

  mlp_dim: int
  use_bias: bool = True
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, T, D) -> (B, T, D); `train` turns dropout on."""
    dense = lambda width, name: Dense(
      width, use_bias=self.use_bias, dtype=self.dtype, name=name
    )
    gate = nn.silu(dense(self.mlp_dim, 'gate')(x))
    y = gate * dense(self.mlp_dim, 'Dense_0')(x)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = dense(x.shape[-1], 'Dense_1')(y)
    return Dropout(self.dropout, deterministic=not train)(y)
