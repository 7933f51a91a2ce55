"""CeiT: Incorporating Convolution Designs into Visual Transformers.

arXiv:2103.11816. Three changes to DeiT: tokens are cut from the feature map of
a small convolutional stem (image-to-tokens, I2T), the feed-forward of every
block mixes each patch with its eight neighbors (locally-enhanced feed-forward,
LeFF), and the class tokens of all blocks are read by a last attention
(layer-wise class-token attention, LCA).

The fields `i2t`, `leff` and `lca` switch the three off; without them the model
is DeiT. The defaults are what the released weights need. Where the paper
differs, a field gives its form: `leff_gelu3=True` puts a third GELU at the end
of LeFF (eq. 10), `leff_cls='identity'` leaves the class token unchanged there
(eq. 11; the released code adds LN(cls) to it), `lca_posemb=False` leaves out
the table that is added to the class tokens. The reimplementation
rishikksh20/CeiT-pytorch has all three, and stem_width=32, stem_bias=True,
stem_padding=4, pool_padding=0, qkv_bias=False, epsilon=1e-5,
depthwise_bias=False and other `lca_*` sizes. B batch, N patches, T = 1 + N
tokens, D width, H heads, L depth.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import check_field, run_blocks
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.heads import classify
from vit_jax.models.initializers import (
  TIMM,
  normal02,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.leff import LeFF
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.patches import PatchSize, embed_patches, patch_shape
from vit_jax.models.registry import register
from vit_jax.models.tokens import add_position_table, prepend_tokens
from vit_jax.models.tpu_layout import constrain
from vit_jax.preprocessing import Preprocessing

# name: (width, heads); all have 12 blocks.
SIZES = {'t': (192, 3), 's': (384, 6), 'b': (768, 12)}


class ImageToTokens(nn.Module):
  """Convolution 7x7/2, BatchNorm, max-pool 3x3/2; then the patches (eq. 4)."""

  width: int
  patch_size: tuple[int, int]  # of the image; the map is a quarter of it
  stem_width: int = 64
  stem_bias: bool = False
  stem_padding: int = 3
  pool_padding: int = 1
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, 3) -> tokens (B, h, w, D), the pooled map."""
    x = nn.Conv(
      self.stem_width,
      (7, 7),
      strides=2,
      padding=self.stem_padding,
      use_bias=self.stem_bias,
      dtype=self.dtype,
      kernel_init=torch_conv_kernel,
      bias_init=torch_conv_bias(49 * images.shape[-1]),
      name='conv',
    )(images.astype(self.dtype))
    x = self.batch_norm(dtype=self.dtype, name='bn')(x, train)
    pad: Any = ((self.pool_padding,) * 2,) * 2
    x = pooled = nn.max_pool(x, (3, 3), (2, 2), pad)
    size = tuple(p // 4 for p in self.patch_size)
    x = embed_patches(
      x, self.width, size, init=TIMM, dtype=self.dtype, name='proj'
    )
    return x, pooled


class Block(nn.Module):
  """x + attention(LN(x)), then x + LeFF(LN(x)) on the patches."""

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
  dtype: Any = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(B, T, D) -> (B, T, D), intermediates; `rate` is of drop path."""
    y, probs = _attend(self, x, 0, train)
    x = after_attention = x + DropPath()(y, rate, train)

    y = nn.LayerNorm(self.epsilon, self.dtype)(x)
    y = self._leff(y, train) if self.leff else _mlp(self, y, train)
    x = x + DropPath()(y, rate, train)

    # The class token is an output of its own: LCA reads it, and the gradient of
    # a slice of `tokens` would keep the tokens of all blocks in memory at once.
    aux = {'tokens': x, 'after_attention': after_attention, 'cls': x[:, 0]}
    if self.return_attention:
      aux['attention'] = probs
    return x, aux

  def _leff(self, y: jax.Array, train: bool) -> jax.Array:
    """LeFF on the patches of (B, T, D), beside the class token."""
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
  """The last class token attends to the class tokens of all blocks; MLP."""

  num_heads: int
  mlp_dim: int
  qkv_bias: bool = True
  head_width: int | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(B, L, D) -> (B, 1, D), probabilities (B, H, 1, L)."""
    y, probs = _attend(self, tokens, -1, train)
    x = tokens[:, -1:] + y
    y = _mlp(self, nn.LayerNorm(self.epsilon, self.dtype)(x), train)
    return x + y, probs


def _attend(
  block: Block | LayerwiseClassAttention,
  tokens: jax.Array,
  first: int,
  train: bool,
) -> tuple[jax.Array, jax.Array]:
  """attention(LN(x)) with its dropout, and the probabilities.

  Queries are the tokens from number `first` on.
  """
  y = nn.LayerNorm(block.epsilon, block.dtype)(tokens)
  y, probs = MultiHeadDotProductAttention(
    block.num_heads,
    block.attention_dropout,
    block.qkv_bias,
    block.dtype,
    kernel_init=normal02,
    head_width=block.head_width,
    name='attn',
  )(y[:, first:], y, train)
  return Dropout(block.dropout, deterministic=not train)(y), probs


def _mlp(
  block: Block | LayerwiseClassAttention, y: jax.Array, train: bool
) -> jax.Array:
  """The MLP of a block on every token, (B, T, D) -> (B, T, D)."""
  return MlpBlock(
    block.mlp_dim,
    block.dropout,
    block.activation,
    block.dtype,
    normal02,
    nn.initializers.zeros,
    name='mlp',
  )(y, train)


class CeiT(nn.Module):
  """Convolution-enhanced image transformer; see the module docstring."""

  num_classes: int = 1000  # 0: no head, logits are pre_logits
  patch_size: PatchSize = 16  # multiples of 4
  width: int = 192
  depth: int = 12
  num_heads: int = 3
  head_width: int | None = None  # None: width / num_heads
  mlp_dim: int | None = None  # None: 4 * width
  i2t: bool = True  # False: patches of the image, as a ViT's
  stem_width: int = 64  # channels of the stem's map
  stem_bias: bool = False
  stem_padding: int = 3
  pool_padding: int = 1
  leff: bool = True  # False: a ViT's MLP on all tokens
  leff_gelu3: bool = False  # a third GELU, as in the paper
  leff_cls: str = 'norm'  # cls + LN(cls) in LeFF, or 'identity' as in the paper
  depthwise_bias: bool = True
  qkv_bias: bool = True
  lca: bool = True
  lca_posemb: bool = True
  lca_heads: int | None = None  # None: num_heads
  lca_head_width: int | None = None  # None: head_width
  lca_mlp_dim: int | None = None  # None: mlp_dim
  pool: str = 'token'  # without LCA: 'token', or 'gap' (mean of all tokens)
  epsilon: float = 1e-6  # of LayerNorm
  bn_groups: int = 1  # BatchNorm statistics per group of the batch; 1: global
  bn_unbiased: bool = True  # running variances as in PyTorch
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # of the last block; linear from 0 at the first
  activation: str = 'gelu_erf'
  dtype: Any = jnp.float32
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
      logits (B, num_classes), float32; and a dict: pooled_map (B, h', w', C) of
      the convolutional stem, stem (B, h, w, D) the patches, with_posemb
      (B, T, D), block_00 ..., block_00_attention ... (B, T, D) the same after
      attention alone, encoded = tokens (B, T, D), before the last norm, lca
      (B, 1, D), pooled (B, D) before and pre_logits (B, D) after the last norm.
      With `return_attention` also attention, one (B, H, T, T) per block, and
      attention_lca (B, H, 1, L).

    Raises:
      ValueError: a field that is not allowed, or no patch fits.
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
    norm = nn.LayerNorm(self.epsilon, dtype, name='encoder_norm')
    x = out['pre_logits'] = norm(x)
    return classify(x, self.num_classes, kernel_init=normal02), out

  def _attend_to_layers(
    self, cls: jax.Array, mlp_dim: int, shared: dict[str, Any], train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """LCA on the class tokens of all blocks, (B, L, D) -> (B, 1, D), maps."""
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
        f'patch_size {self.patch_size}: the stem of CeiT reduces by 4; '
        'allowed: multiples of 4'
      )
    check_field('leff_cls', self.leff_cls, ('norm', 'identity'))
    check_field('pool', self.pool, ('token', 'gap'))


# One published archive holds T and S at 224 and 384, B at 224.
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
