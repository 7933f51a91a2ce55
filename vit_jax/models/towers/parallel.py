"""Blocks whose branches are computed side by side.

`TwoBranchBlock` is of "Three things everyone should know about Vision
Transformers" (arXiv:2203.09795, section 3): two attentions side by side, then
two MLPs, so that a model of depth 18x2 has the layers of one of depth 36.
`ParallelBlock` is of ViT-22B (arXiv:2302.05442, section 2): attention and MLP
side by side, after one norm.
"""

from flax import linen as nn
import jax

from vit_jax.models.blocks import scale_channels
from vit_jax.models.dropout import DropPath
from vit_jax.models.towers.block import TowerBlock


class TwoBranchBlock(TowerBlock):
  """x + the sum of two attentions, then x + the sum of two MLPs.

  Each branch has its own norm and LayerScale: 0 and 1 are those of the
  attentions, 2 and 3 those of the MLPs.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `TowerBlock`; 'attention' is that of the first branch."""
    branches, maps = [], []
    for i in range(2):
      y = self.normalize(f'LayerNorm_{i}', x)
      y, probs = self.attention(f'MultiHeadDotProductAttention_{i}', y, train)
      y = scale_channels(self, f'gamma_{i}', y, self.layer_scale)
      branches.append(DropPath()(y, rate, train))
      maps.append(probs)
    x = x + (branches[0] + branches[1])
    branches = []
    for i in range(2):
      y = self.normalize(f'LayerNorm_{i + 2}', x)
      y = self.mlp_branch(f'MlpBlock_{i}', y, train)
      y = scale_channels(self, f'gamma_{i + 2}', y, self.layer_scale)
      branches.append(DropPath()(y, rate, train))
    x = x + (branches[0] + branches[1])
    return x, self.intermediates(x, maps[0])


class ParallelBlock(TowerBlock):
  """x + attention(norm(x)) + MLP(norm(x)), with the same norm for both."""

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `TowerBlock`."""
    y = self.normalize('LayerNorm_0', x)
    a, probs = self.attention('MultiHeadDotProductAttention_0', y, train)
    y = a + self.mlp_branch('MlpBlock_0', y, train)
    y = scale_channels(self, 'gamma_1', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)
    return x, self.intermediates(x, probs)
