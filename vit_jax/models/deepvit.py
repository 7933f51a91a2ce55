"""DeepViT: Towards Deeper Vision Transformer (arXiv:2103.11886).

The attention maps of a deep ViT become nearly equal from some block on.
Re-attention recombines the maps of the H heads with a learned matrix and
normalizes them, which keeps the blocks different. The paper puts it in every
block and writes it without a bias; the published S and L have it, with a bias,
in their last blocks only, a convolutional patch embedding, and branches of
twice the size.
B batch, T tokens, D width, H heads, K = D / H.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import (
  MixHeads,
  MultiHeadDotProductAttention,
  attend,
)
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import run_blocks
from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.heads import classify
from vit_jax.models.initializers import (
  TIMM,
  normal02,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.patches import embed_patches
from vit_jax.models.registry import register
from vit_jax.models.tokens import add_position_table, prepend_tokens
from vit_jax.models.tpu_layout import constrain
from vit_jax.preprocessing import Preprocessing

STEM = ((7, 2), (3, 1))  # (size, stride) of the convolutional embedding


def re_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
  train: bool,
  bias: bool = True,
  scale: float = 1.0,
  batch_norm: Callable[..., BatchNorm] = BatchNorm,
  dtype: Any = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Norm(Θ·softmax(qkᵀ/√K))·v (arXiv:2103.11886, eq. 3), Θ over the heads.

  Called inside an attention module, which gets `reattn` (Θ) and `reattn_norm`
  (BatchNorm per head over batch, queries and keys, with running statistics).

  Args:
    q, k, v: (B, T, H, K).
    dropout: function applied to the softmax.
    train: normalizes with the batch's statistics.
    bias: whether Θ has a bias.
    scale: factor on the normalized maps.
    batch_norm: makes the BatchNorm module.
    dtype: of the products.

  Returns:
    (B, T, H, K); and the maps (B, H, T, T), 'softmax' and 'mixed'. Rows of a
    mixed map do not sum to one, entries may be negative.
  """
  heads = q.shape[2]
  logits = jnp.einsum('bthk,bshk->bhts', q * q.shape[-1] ** -0.5, k)
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  dropped = dropout(probs) if dropout is not None else probs
  # The norm enlarges small differences from the mean, so they must not be lost
  # to rounding: the matrix is applied to the differences.
  mean = 1 / k.shape[1]
  mixed = MixHeads(
    heads,
    bias,
    dtype,
    kernel_init=torch_conv_kernel,
    bias_init=torch_conv_bias(heads),
    name='reattn',
  )(dropped - mean, mean)
  mixed = batch_norm(axis=1, name='reattn_norm')(mixed, train) * scale
  y = jnp.einsum('bhts,bshk->bthk', mixed.astype(v.dtype), v)
  return y, {'softmax': probs, 'mixed': mixed}


class Block(nn.Module):
  """x + attention(LN(a·x)) / a, then x + MLP(LN(a·x)) / a.

  LayerNorm undoes the inner factor up to its epsilon, so a < 1 enlarges both
  branches.
  """

  num_heads: int
  mlp_dim: int
  reattn: bool = True
  reattn_bias: bool = True
  reattn_scale: float = 1.0
  adjustment: float = 1.0  # a
  qkv_bias: bool = True
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  dtype: Any = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(B, T, D) -> (B, T, D), intermediates; `rate` is of drop path."""
    a = self.adjustment
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    attend_fn = attend
    if self.reattn:
      attend_fn = functools.partial(
        re_attention,
        train=train,
        bias=self.reattn_bias,
        scale=self.reattn_scale,
        batch_norm=self.batch_norm,
        dtype=self.dtype,
      )
    y = norm()(a * x)
    y, maps = MultiHeadDotProductAttention(
      self.num_heads,
      self.attention_dropout,
      self.qkv_bias,
      self.dtype,
      kernel_init=normal02,
      attend_fn=attend_fn,
      name='attn',
    )(y, y, train)
    y = Dropout(self.dropout, deterministic=not train)(y)
    x = x + DropPath()(y / a, rate, train)
    y = MlpBlock(
      self.mlp_dim,
      self.dropout,
      self.activation,
      self.dtype,
      normal02,
      nn.initializers.zeros,
      name='mlp',
    )(norm()(a * x), train)
    x = x + DropPath()(y / a, rate, train)

    aux: dict[str, Any] = {'tokens': x}
    if self.return_attention:
      aux['attention'] = (
        maps if self.reattn else {'softmax': maps, 'mixed': maps}
      )
    return x, aux


class DeepViT(nn.Module):
  """A deep ViT with re-attention; see the module docstring."""

  num_classes: int = 1000  # 0: no head, logits are pre_logits
  patch_size: int = 16
  width: int = 384
  depth: int = 16
  num_heads: int = 12
  mlp_dim: int | None = None  # None: 3 * width
  reattn: tuple[bool, ...] | None = None  # per block; None: all, as the paper
  reattn_bias: bool = True  # the paper's formula has none
  reattn_scaled: bool = False  # scale re-attended maps by K ** -0.5 (S only)
  adjustment: float = 1.0  # a, see Block
  cnn_embed: bool = False  # three convolutions instead of one
  qkv_bias: bool = True
  bn_groups: int = 1  # BatchNorm statistics per group of the batch; 1: global
  bn_unbiased: bool = True  # running variances as in PyTorch
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # of the last block; linear from 0 at the first
  activation: str = 'gelu_erf'
  dtype: Any = jnp.float32
  remat: str = 'none'
  scan: bool = False  # the leading run of equal blocks
  return_attention: bool = False

  def _plan(self) -> list[bool]:
    """Whether each block has re-attention."""
    plan = (True,) * self.depth if self.reattn is None else self.reattn
    if len(plan) != self.depth:
      raise ValueError(
        f'reattn has {len(plan)} entries for {self.depth} '
        'blocks; give one per block, or None for all'
      )
    return [bool(p) for p in plan]

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
      logits (B, num_classes), float32; and a dict: stem (B, h, w, D),
      with_posemb (B, T, D), block_00 ..., encoded = tokens (B, T, D), T = 1 +
      h * w, pre_logits (B, D). With `return_attention` also, one (B, H, T, T)
      per block, attention, the maps that weigh the values (those of the
      cosine regularizer), and attention_softmax, the same before re-attention.

    Raises:
      ValueError: width not divisible by num_heads, no patch fits, or `reattn`
        has another length than `depth`.
    """
    plan, dtype = self._plan(), jnp.dtype(self.dtype)
    batch_norm = functools.partial(
      BatchNorm, groups=self.bn_groups, unbiased=self.bn_unbiased
    )
    if self.cnn_embed:
      x = ConvStem(
        self.width,
        self.patch_size,
        STEM,
        batch_norm=batch_norm,
        dtype=dtype,
        name='patch_embed',
      )(images, train)
    else:
      x = embed_patches(
        images, self.width, self.patch_size, init=TIMM, dtype=dtype
      )
    out: dict[str, Any] = {'stem': x}
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, self.width)
    x = prepend_tokens(self, ['cls'], x, normal02)
    x = add_position_table(self, x, normal02, dropout=self.dropout, train=train)
    x = out['with_posemb'] = constrain(x)

    block = functools.partial(
      Block,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim or 3 * self.width,
      reattn_bias=self.reattn_bias,
      reattn_scale=(self.width // self.num_heads) ** -0.5
      if self.reattn_scaled
      else 1.0,
      adjustment=self.adjustment,
      qkv_bias=self.qkv_bias,
      batch_norm=batch_norm,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      activation=self.activation,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    rates = drop_path_rates(self.drop_path, self.depth)
    auxes = []
    for first, end in _runs(plan):
      x, more = run_blocks(
        functools.partial(block, reattn=plan[first]),
        x,
        rates[first:end],
        train,
        name='block',
        remat=self.remat,
        scan=self.scan and first == 0,
        first=first,
      )
      auxes += more
    for i, aux in enumerate(auxes):
      out[f'block_{i:02d}'] = aux['tokens']
    if self.return_attention:
      out['attention'] = [aux['attention']['mixed'] for aux in auxes]
      out['attention_softmax'] = [aux['attention']['softmax'] for aux in auxes]

    x = nn.LayerNorm(epsilon=1e-6, dtype=dtype, name='encoder_norm')(x)
    out['encoded'] = out['tokens'] = x
    x = out['pre_logits'] = x[:, 0]
    return classify(x, self.num_classes, kernel_init=normal02), out


def _runs(plan: list[bool]) -> list[tuple[int, int]]:
  """(first, end) of each run of equal entries."""
  starts = [i for i in range(len(plan)) if i == 0 or plan[i] != plan[i - 1]]
  return list(zip(starts, [*starts[1:], len(plan)], strict=True))


def _last(blocks: int, depth: int) -> tuple[bool, ...]:
  return (False,) * (depth - blocks) + (True,) * blocks


_register = functools.partial(
  register,
  module=DeepViT,
  preprocessing=Preprocessing(crop=0.9, interpolation='bicubic'),
)
for _depth in (16, 24, 32):
  _register(f'deepvit_{_depth}', width=384, depth=_depth)
_register(
  'deepvit_s',
  released=('DViT_82_16b.pth.tar',),
  width=396,
  depth=16,
  reattn=_last(5, 16),
  reattn_scaled=True,
  adjustment=0.5,
  cnn_embed=True,
)
_register(
  'deepvit_l',
  released=('DViT_83_32b.pth.tar',),
  width=420,
  depth=32,
  reattn=_last(12, 32),
  adjustment=0.5,
  cnn_embed=True,
)
# The width of the paper's L with 55M parameters; the published code has 420.
_register(
  'deepvit_l408',
  width=408,
  depth=32,
  reattn=_last(12, 32),
  adjustment=0.5,
  cnn_embed=True,
)
