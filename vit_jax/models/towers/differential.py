"""Differential attention (arXiv:2410.05258, section 2.1).

Each head has two attention maps, of the two halves of its queries and keys. The
difference of the two, with a learned factor, cancels what both have in common.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import attend
from vit_jax.models.towers.block import TowerBlock


class DifferentialAttention(nn.Module):
  """Computes attention from queries, keys and values; see `attention.attend`.

  Attributes:
    number: the number of the block, from 0, which sets the initial factor.
  """

  number: int = 0

  @nn.compact
  def __call__(
    self, q: jax.Array, k: jax.Array, v: jax.Array, **kwargs: Any
  ) -> tuple[jax.Array, jax.Array]:
    """q, k (B, T, H, K), v (B, T, H, K) -> (B, T, H, K), maps (B, H, T, T)."""
    half = q.shape[-1] // 2
    factor = lambda i: jnp.exp(
      jnp.sum(
        self.param(f'lambda_q{i}', nn.initializers.normal(0.1), (half,))
        * self.param(f'lambda_k{i}', nn.initializers.normal(0.1), (half,))
      )
    )
    initial = 0.8 - 0.6 * math.exp(-0.3 * self.number)
    weight = factor(1) - factor(2) + initial
    y1, map1 = attend(q[..., :half], k[..., :half], v, **kwargs)
    y2, map2 = attend(q[..., half:], k[..., half:], v, **kwargs)
    y = y1 - weight.astype(y2.dtype) * y2
    y = nn.RMSNorm(epsilon=1e-5, dtype=y.dtype, name='sub_norm')(y)
    return y * (1 - initial), map1 - weight * map2


class DifferentialBlock(TowerBlock):
  """`TowerBlock` with differential attention."""

  number: int = 0

  def attend_fn(self) -> Callable[..., Any]:
    """See `TowerBlock`."""
    return DifferentialAttention(self.number, name='differential')
