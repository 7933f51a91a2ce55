"""Vision towers: ViTs with registers, CLIP's towers, and their relatives.

What differs from ViT (arXiv:2010.11929): there may be register tokens
(arXiv:2309.16588), a norm before the blocks (CLIP, arXiv:2103.00020, section
2.4), and other blocks, which `block`, `parallel` and `differential` have. With
these it is the model of DINOv2 with registers (arXiv:2304.07193), CLIP, SigLIP
(arXiv:2303.15343), BEiT-3 (arXiv:2208.10442), AIMv2 (arXiv:2411.14402),
InternViT (arXiv:2312.14238) and timm's ViTs with registers. The encoder is
ViT's, and so are the names of the parameters.

B batch, T tokens, D width, H heads.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.activations import GELU
from vit_jax.models.blocks import check_field
from vit_jax.models.encoder import Encoder
from vit_jax.models.heads import MAPHead, classify
from vit_jax.models.initializers import INITIALIZERS
from vit_jax.models.patches import PatchSize, embed_patches
from vit_jax.models.towers.block import MLPS, NORMS, PostNormBlock, TowerBlock
from vit_jax.models.towers.differential import DifferentialBlock
from vit_jax.models.towers.parallel import ParallelBlock, TwoBranchBlock

BLOCKS = {
  'pre_norm': TowerBlock,
  'post_norm': PostNormBlock,
  'parallel': ParallelBlock,
  'two_branches': TwoBranchBlock,
  'diff': DifferentialBlock,
}
POOLS = ('token', 'gap', 'map')
FINAL_NORMS = ('tokens', 'pooled', 'none')


class Tower(nn.Module):
  """A vision tower; see the module docstring.

  Attributes:
    num_classes, patch_size, width, depth, num_heads, mlp_dim, layer_scale,
      activation, norm_eps, init_style, head_bias, dropout, attention_dropout,
      drop_path, dtype, remat, scan, return_attention: as in `vit.ViT`.
    pool: 'token', 'gap' or 'map', as in `vit.ViT`.
    pool_prefix: whether 'gap' and 'map' pool the tokens before the patches too.
    class_token: whether there is a class token.
    registers: number of register tokens, which follow the class token.
    class_posemb: whether the position table has rows for these tokens.
    embed_norm: whether the embedded patches are normalized.
    pre_norm: whether the tokens are normalized before the first block; the
      patch embedding then has no bias.
    final_norm: 'tokens' normalizes all tokens, 'pooled' the pooled features,
      'none' nothing.
    norm: key of `block.NORMS`.
    block: key of BLOCKS.
    mlp, qkv_bias, out_bias, qk_norm, inner_norm: see `block.TowerBlock`.
  """

  num_classes: int = 1000
  patch_size: PatchSize = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  pool: str = 'token'
  pool_prefix: bool = False
  class_token: bool = True
  registers: int = 0
  class_posemb: bool = True
  embed_norm: bool = False
  pre_norm: bool = False
  final_norm: str = 'tokens'
  norm: str = 'layer'
  norm_eps: float = 1e-6
  block: str = 'pre_norm'
  mlp: str = 'mlp'
  activation: str = 'gelu_erf'
  qkv_bias: bool = True
  out_bias: bool = True
  qk_norm: bool = False
  inner_norm: bool = False
  layer_scale: float | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0
  init_style: str = 'timm'
  head_bias: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      logits (B, num_classes), float32; and a dict of intermediates: stem
      (B, h, w, D), with_posemb and block_00 ... (B, T, D), encoded = tokens
      (B, T, D), pre_logits (B, D), and with `return_attention` attention, a
      list of one (B, H, T, T) per block.

    Raises:
      ValueError: a field has a value that is not allowed, or no patch fits into
        the image.
    """
    self._check()
    init, dtype = INITIALIZERS[self.init_style], jnp.dtype(self.dtype)
    norm = lambda name, dtype=dtype: NORMS[self.norm](
      epsilon=self.norm_eps, dtype=dtype, name=name
    )
    x = embed_patches(
      images.astype(dtype),
      self.width,
      self.patch_size,
      init=init,
      dtype=dtype,
      use_bias=not self.pre_norm,
    )
    if self.embed_norm:
      x = norm('embedding_norm')(x)
    stem, (batch, height, width, _) = x, x.shape
    x = x.reshape(batch, height * width, self.width)
    x, prefix = self._prepend(x)
    x, out = Encoder(
      depth=self.depth,
      block=self._block_fields((height, width), prefix),
      block_cls=BLOCKS[self.block],
      numbered=self.block == 'diff',
      prefix_posemb=self.class_posemb,
      drop_path=self.drop_path,
      pre_norm=norm('pre_norm') if self.pre_norm else None,
      final_norm=self.final_norm == 'tokens',
      norm=NORMS[self.norm],
      remat=self.remat,
      scan=self.scan,
      name='Transformer',
    )(x, train)
    out |= {'stem': stem, 'encoded': x, 'tokens': x}
    x = self._pool(x.astype(jnp.float32), prefix, train)
    if self.final_norm == 'pooled':
      x = norm('fc_norm', jnp.float32)(x)
    out['pre_logits'] = x
    logits = classify(
      x, self.num_classes, kernel_init=init.head, bias=self.head_bias
    )
    return logits, out

  def _prepend(self, x: jax.Array) -> tuple[jax.Array, int]:
    """Puts the class token and the registers before (B, N, D)."""
    init, tokens = INITIALIZERS[self.init_style], []
    for name, count in (
      ('cls', int(self.class_token)),
      ('registers', self.registers),
    ):
      if count:
        shape = (1, count, self.width)
        token = self.param(name, init.token, shape).astype(x.dtype)
        tokens.append(jnp.broadcast_to(token, (x.shape[0], *shape[1:])))
    prefix = int(self.class_token) + self.registers
    return jnp.concatenate([*tokens, x], axis=1), prefix

  def _block_fields(self, grid: tuple[int, int], prefix: int) -> dict[str, Any]:
    names = (
      *('num_heads', 'mlp_dim', 'dropout', 'attention_dropout', 'norm'),
      *('layer_scale', 'activation', 'norm_eps', 'init_style', 'mlp'),
      *('qkv_bias', 'out_bias', 'qk_norm', 'inner_norm', 'return_attention'),
    )
    fields = {name: getattr(self, name) for name in names}
    dtype = jnp.dtype(self.dtype)
    return {**fields, 'grid': grid, 'prefix': prefix, 'dtype': dtype}

  def _pool(self, x: jax.Array, prefix: int, train: bool) -> jax.Array:
    """Tokens (B, T, D) -> features (B, D)."""
    if self.pool == 'token':
      return x[:, 0]
    if not self.pool_prefix:
      x = x[:, prefix:]
    if self.pool == 'gap':
      return x.mean(axis=1)
    return MAPHead(
      self.num_heads,
      self.mlp_dim,
      self.activation,
      self.norm_eps,
      name='MAPHead_0',
    )(x, train)

  def _check(self) -> None:
    for field, allowed in (
      ('pool', POOLS),
      ('final_norm', FINAL_NORMS),
      ('norm', tuple(NORMS)),
      ('block', tuple(BLOCKS)),
      ('mlp', MLPS),
      ('init_style', tuple(INITIALIZERS)),
      ('activation', tuple(GELU)),
    ):
      check_field(field, getattr(self, field), allowed)
    if self.pool == 'token' and not self.class_token:
      raise ValueError(
        "class_token=False leaves no token for pool='token': use pool='gap' or "
        "'map'"
      )
    if self.scan and self.block == 'diff':
      raise ValueError(
        "scan=True needs equal blocks, and those of block='diff' have their "
        'number in them: use scan=False'
      )
