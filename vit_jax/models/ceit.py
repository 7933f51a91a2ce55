"""CeiT: Incorporating Convolution Designs into Visual Transformers.

arXiv:2103.11816. The paper makes three changes to DeiT. Image-to-tokens (I2T):
patches are taken from the feature map of a small convolutional stem.
Locally-enhanced feed-forward (LeFF): the MLP of every block mixes each patch
with its eight neighbors. Layer-wise class-token attention (LCA): after the last
block, an attention layer combines the class tokens of all blocks.

The fields `i2t`, `leff` and `lca` switch the three off; without them the model
is DeiT. The defaults are those of the released weights. Three fields give the
form in the paper where it differs: `leff_gelu3=True` adds a third GELU at the
end of LeFF (eq. 10), `leff_cls='identity'` leaves the class token unchanged in
LeFF (eq. 11; the released code adds LN(cls) to it), and `lca_posemb=False`
leaves out the table that the released code adds to the class tokens in LCA.
Weights of the reimplementation rishikksh20/CeiT-pytorch need these three, and
stem_width=32, stem_bias=True, stem_padding=4, pool_padding=0, qkv_bias=False,
epsilon=1e-5, depthwise_bias=False and other `lca_*` sizes.

B batch, N patches, T = 1 + N tokens, D width, H heads, L depth.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import check_field, run_blocks
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.fused.attend import attend_fn
from vit_jax.models.heads import classify
from vit_jax.models.image_to_tokens import ImageToTokens
from vit_jax.models.initializers import (
  TIMM,
  normal02,
)
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.leff import LeFF
from vit_jax.models.mlp import timm_mlp
from vit_jax.models.patches import PatchSize, embed_patches, patch_shape
from vit_jax.models.registry import register
from vit_jax.models.tokens import add_position_table, prepend_tokens
from vit_jax.models.tpu_layout import constrain
from vit_jax.preprocessing import Preprocessing

# name: (width, heads); all have 12 blocks.
SIZES = {'t': (192, 3), 's': (384, 6), 'b': (768, 12)}


class Block(nn.Module):
  """x + attention(LN(x)), then x + LeFF(LN(x)).

  Without `leff`, an MLP on every token replaces LeFF, which works on patches.
  """

  grid: tuple[int, int]  # patches (h, w)
  num_heads: int
  mlp_dim: int
  leff: bool = True
  leff_gelu3: bool = False
  leff_cls: str = 'norm'
  depthwise_bias: bool = True
  qkv_bias: bool = True
  head_width: int | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  epsilon: float = 1e-6
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dtype: DTypeLike = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Applies the block.

    Args:
      x: (B, T, D).
      rate: drop-path rate of both branches.
      train: turns dropout and drop path on, and uses the batch's statistics.

    Returns:
      (B, T, D); and intermediates: 'tokens' and 'after_attention' (B, T, D),
      'cls' (B, D), and with `return_attention` 'attention' (B, H, T, T).
    """
    y, probs = _attend(self, x, 0, train, self.return_attention)
    x = after_attention = x + DropPath()(y, rate, train)

    y = LayerNorm(self.epsilon, self.dtype)(x)
    y = self._leff(y, train) if self.leff else _mlp(self, y, train)
    x = x + DropPath()(y, rate, train)

    # LCA needs the class token of every block. It is returned by itself,
    # because the gradient of a slice of `tokens` would keep the tokens of all
    # blocks in memory at the same time.
    aux = {'tokens': x, 'after_attention': after_attention, 'cls': x[:, 0]}
    if self.return_attention:
      aux['attention'] = probs
    return x, aux

  def _leff(self, y: jax.Array, train: bool) -> jax.Array:
    """LeFF on the patches (B, T, D), and what is added to the class token.

    Args:
      y: the tokens after LayerNorm, (B, T, D).
      train: as in `__call__`.

    Returns:
      (B, T, D): LeFF of the patches. For the class token, its own value, or 0
      for leff_cls='identity'.
    """
    cls, y = y[:, :1], y[:, 1:]
    batch, patches, width = y.shape
    y = LeFF(
      self.mlp_dim,
      self.leff_gelu3,
      self.depthwise_bias,
      self.activation,
      self.batch_norm,
      self.dtype,
      name='leff',
    )(y.reshape(batch, *self.grid, width), train)
    if self.leff_cls == 'identity':
      cls = jnp.zeros_like(cls)
    return jnp.concatenate([cls, y.reshape(batch, patches, width)], axis=1)


class LayerwiseClassAttention(nn.Module):
  """LCA: the last class token attends to the class tokens of all blocks.

  An MLP follows, as in a block; there is no drop path.
  """

  num_heads: int
  mlp_dim: int
  qkv_bias: bool = True
  head_width: int | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Class tokens (B, L, D) -> (B, 1, D), and probabilities (B, H, 1, L)."""
    y, probs = _attend(self, tokens, -1, train, True)
    x = tokens[:, -1:] + y
    y = _mlp(self, LayerNorm(self.epsilon, self.dtype)(x), train)
    return x + y, probs


def _attend(
  block: Block | LayerwiseClassAttention,
  tokens: jax.Array,
  first: int,
  train: bool,
  probabilities: bool,
) -> tuple[jax.Array, jax.Array]:
  """The attention branch of a block: dropout(attention(LN(tokens))).

  Args:
    block: the module that owns the layers.
    tokens: (B, T, D).
    first: the tokens from this number on are the queries; -1 for the last only.
    train: turns dropout on.
    probabilities: whether the second result is needed.

  Returns:
    The branch (B, queries, D), and the probabilities (B, H, queries, T).
  """
  y = LayerNorm(block.epsilon, block.dtype)(tokens)
  y, probs = MultiHeadDotProductAttention(
    block.num_heads,
    block.attention_dropout,
    block.qkv_bias,
    block.dtype,
    kernel_init=normal02,
    attend_fn=attend_fn(probabilities),
    head_width=block.head_width,
    name='attn',
  )(y[:, first:], y, train)
  return Dropout(block.dropout, deterministic=not train)(y), probs


def _mlp(
  block: Block | LayerwiseClassAttention, y: jax.Array, train: bool
) -> jax.Array:
  """The MLP of a block on every token, (B, T, D) -> (B, T, D)."""
  mlp = timm_mlp(block.mlp_dim, block.dropout, block.activation, block.dtype)
  return mlp(y, train)


class CeiT(nn.Module):
  """Convolution-enhanced image transformer; see the module docstring."""

  num_classes: int = 1000  # 0 for no head: the logits are pre_logits
  patch_size: PatchSize = 16  # a multiple of 4
  width: int = 192
  depth: int = 12
  num_heads: int = 3
  head_width: int | None = None  # None: width / num_heads
  mlp_dim: int | None = None  # None: 4 * width
  i2t: bool = True  # False: patches of the image, as in ViT
  stem_width: int = 64  # channels of the stem's map
  stem_bias: bool = False
  stem_padding: int = 3
  pool_padding: int = 1
  leff: bool = True  # False: an MLP on all tokens, as in ViT
  leff_gelu3: bool = False  # a third GELU, as in the paper
  leff_cls: str = 'norm'  # cls + LN(cls) in LeFF; 'identity' (paper) keeps cls
  depthwise_bias: bool = True
  qkv_bias: bool = True
  lca: bool = True
  lca_posemb: bool = True
  lca_heads: int | None = None  # None: num_heads
  lca_head_width: int | None = None  # None: head_width
  lca_mlp_dim: int | None = None  # None: mlp_dim
  pool: str = 'token'  # without LCA: 'token', or 'gap' (mean of all tokens)
  epsilon: float = 1e-6  # added to the variance in LayerNorm
  bn_groups: int = (
    1  # groups of the batch with BatchNorm statistics of their own
  )
  bn_unbiased: bool = True  # the running variances are unbiased, as in PyTorch
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # rate of the last block; linear from 0 at the first
  activation: str = 'gelu_erf'
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
      train: turns dropout and drop path on (rng stream 'dropout'), and
        BatchNorm to the batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32; and a dict: pooled_map (B, h', w', C),
      the output of the convolutional stem; stem (B, h, w, D), the patches;
      with_posemb, block_00 ..., block_00_attention ... (after the attention of
      the block) and encoded = tokens (before the last norm), all (B, T, D); lca
      (B, 1, D); pooled and pre_logits (B, D), before and after the last norm.
      With `return_attention` also attention, a list of one (B, H, T, T) per
      block, and attention_lca (B, H, 1, L).

    Raises:
      ValueError: a field has a value that is not allowed, or no patch fits.
    """
    patch_size = patch_shape(self.patch_size)
    self._check(patch_size)
    dtype = jnp.dtype(self.dtype)
    batch_norm = functools.partial(
      BatchNorm, groups=self.bn_groups, unbiased=self.bn_unbiased
    )
    out: dict[str, Any] = {}
    if self.i2t:
      x, out['pooled_map'] = ImageToTokens(
        self.width,
        patch_size,
        self.stem_width,
        self.stem_bias,
        self.stem_padding,
        self.pool_padding,
        batch_norm,
        dtype,
        name='i2t',
      )(images, train)
    else:
      x = embed_patches(images, self.width, patch_size, init=TIMM, dtype=dtype)
    out['stem'] = x
    batch, *grid, _ = x.shape
    x = x.reshape(batch, math.prod(grid), self.width)
    x = prepend_tokens(self, ['cls'], x, normal02)
    x = add_position_table(self, x, normal02, dropout=self.dropout, train=train)
    x = out['with_posemb'] = constrain(x)

    shared = dict(
      qkv_bias=self.qkv_bias,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      activation=self.activation,
      epsilon=self.epsilon,
      dtype=dtype,
    )
    mlp_dim = self.mlp_dim or 4 * self.width
    block = functools.partial(
      Block,
      grid=tuple(grid),
      num_heads=self.num_heads,
      mlp_dim=mlp_dim,
      head_width=self.head_width,
      leff=self.leff,
      leff_gelu3=self.leff_gelu3,
      leff_cls=self.leff_cls,
      depthwise_bias=self.depthwise_bias,
      batch_norm=batch_norm,
      return_attention=self.return_attention,
      **shared,
    )
    rates = drop_path_rates(self.drop_path, self.depth)
    x, auxes = run_blocks(
      block,
      x,
      rates,
      train,
      name='block',
      remat=self.remat,
      scan=self.scan,
    )
    for i, aux in enumerate(auxes):
      out[f'block_{i:02d}'] = aux['tokens']
      out[f'block_{i:02d}_attention'] = aux['after_attention']
    if self.return_attention:
      out['attention'] = [aux['attention'] for aux in auxes]
    out['encoded'] = out['tokens'] = x

    if self.lca:
      cls = jnp.stack([aux['cls'] for aux in auxes], axis=1)
      x, probs = self._attend_to_layers(cls, mlp_dim, shared, train)
      out['lca'] = x
      out |= {'attention_lca': probs} if self.return_attention else {}
    mean = self.pool == 'gap' and not self.lca
    x = out['pooled'] = jnp.mean(x, axis=1) if mean else x[:, 0]
    norm = LayerNorm(self.epsilon, dtype, name='encoder_norm')
    x = out['pre_logits'] = norm(x)
    return classify(x, self.num_classes, kernel_init=normal02), out

  def _attend_to_layers(
    self, cls: jax.Array, mlp_dim: int, shared: dict[str, Any], train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """LCA on the class tokens of all blocks; as `LayerwiseClassAttention`."""
    if self.lca_posemb:
      table = self.param(
        'pos_layer_embedding', nn.initializers.zeros, (1, *cls.shape[1:])
      )
      cls = cls + table.astype(cls.dtype)
    return LayerwiseClassAttention(
      self.lca_heads or self.num_heads,
      self.lca_mlp_dim or mlp_dim,
      head_width=self.lca_head_width or self.head_width,
      **shared,
      name='lca',
    )(cls, train)

  def _check(self, patch_size: tuple[int, int]) -> None:
    if any(p < 4 or p % 4 for p in patch_size):
      raise ValueError(
        f'patch_size {self.patch_size}: a position of the stem of CeiT has 4 '
        'pixels; allowed: multiples of 4'
      )
    check_field('leff_cls', self.leff_cls, ('norm', 'identity'))
    check_field('pool', self.pool, ('token', 'gap'))


# There are no names of released files: the weights (T and S for 224 and 384 px,
# B for 224 px) were published as one archive.
for _size, (_width, _heads) in SIZES.items():
  register(
    f'ceit_{_size}',
    CeiT,
    preprocessing=Preprocessing(
      crop=0.875, interpolation='bicubic', normalize='imagenet'
    ),
    width=_width,
    num_heads=_heads,
    mlp_dim=4 * _width,
  )
