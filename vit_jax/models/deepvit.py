"""DeepViT: Towards Deeper Vision Transformer (arXiv:2103.11886).

In a deep ViT, the attention maps of the later blocks are nearly equal.
Re-attention recombines the maps of the H heads with a learned matrix and
normalizes them, which makes the blocks differ. The paper uses re-attention in
every block, and its matrix has no bias. The published S and L use it in their
last blocks only, with a bias; they also have a convolutional patch embedding,
and residual branches that are scaled by 2.

B batch, T tokens, D width, H heads, K = D / H.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.attention import (
  MixHeads,
  MultiHeadDotProductAttention,
)
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import run_blocks
from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.fused.attend import attend_fn
from vit_jax.models.heads import classify
from vit_jax.models.initializers import (
  TIMM,
  normal02,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import timm_mlp
from vit_jax.models.patches import embed_patches
from vit_jax.models.products import attention_logits, attention_output
from vit_jax.models.registry import register
from vit_jax.models.softmax import softmax
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
  dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Re-attention, Norm(Θ·softmax(qkᵀ/√K))·v (arXiv:2103.11886, eq. 3).

  Θ is a matrix over the heads. The function is called inside an attention
  module and creates two layers of it: `reattn` (Θ), and `reattn_norm`, a
  BatchNorm of each head over batch, queries and keys.

  Args:
    q, k, v: (B, T, H, K).
    dropout: function applied to the softmax.
    train: normalizes with the batch's statistics instead of the running ones.
    bias: whether Θ has a bias.
    scale: factor on the normalized maps.
    batch_norm: function that makes the BatchNorm module.
    dtype: dtype of the products.

  Returns:
    The output (B, T, H, K), and the maps (B, H, T, T): 'softmax', and 'mixed'
    after the norm. The rows of a mixed map do not sum to one, and its entries
    may be negative.
  """
  heads = q.shape[2]
  logits = attention_logits(q * q.shape[-1] ** -0.5, k)
  probs = softmax(logits.astype(jnp.float32))
  dropped = dropout(probs) if dropout is not None else probs
  # The norm enlarges small differences of the probabilities from their mean, so
  # these must survive rounding: Θ is applied to the differences.
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
  y = attention_output(mixed.astype(v.dtype), v)
  return y, {'softmax': probs, 'mixed': mixed}


class Block(nn.Module):
  """x + attention(LN(a·x)) / a, then x + MLP(LN(a·x)) / a.

  LayerNorm removes the factor a of its input, except for its epsilon, so a < 1
  enlarges both branches.
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
      (B, T, D); and intermediates: 'tokens' (B, T, D), and with
      `return_attention` 'attention', the maps of `re_attention`.
    """
    a = self.adjustment
    norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
    attend = attend_fn(self.return_attention)
    if self.reattn:
      attend = functools.partial(
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
      attend_fn=attend,
      name='attn',
    )(y, y, train)
    y = Dropout(self.dropout, deterministic=not train)(y)
    x = x + DropPath()(y / a, rate, train)
    y = timm_mlp(self.mlp_dim, self.dropout, self.activation, self.dtype)(
      norm()(a * x), train
    )
    x = x + DropPath()(y / a, rate, train)

    aux: dict[str, Any] = {'tokens': x}
    if self.return_attention:
      aux['attention'] = (
        maps if self.reattn else {'softmax': maps, 'mixed': maps}
      )
    return x, aux


class DeepViT(nn.Module):
  """A deep ViT with re-attention; see the module docstring."""

  num_classes: int = 1000  # 0 for no head: the logits are pre_logits
  patch_size: int = 16
  width: int = 384
  depth: int = 16
  num_heads: int = 12
  mlp_dim: int | None = None  # None: 3 * width
  reattn: tuple[bool, ...] | None = None  # one per block; None for all (paper)
  reattn_bias: bool = True  # False in the paper
  reattn_scaled: bool = False  # scales mixed maps by K ** -0.5 (released S)
  adjustment: float = 1.0  # a, see Block
  cnn_embed: bool = False  # the patch embedding has three convolutions
  qkv_bias: bool = True
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
  scan: bool = False  # scans the first blocks, as far as they are equal
  return_attention: bool = False

  def _plan(self) -> list[bool]:
    """Whether each block has re-attention."""
    plan = (True,) * self.depth if self.reattn is None else self.reattn
    if len(plan) != self.depth:
      raise ValueError(
        f'reattn has {len(plan)} entries for depth={self.depth} blocks: give '
        'one for each block, or None for re-attention in all'
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
      with_posemb (B, T, D), block_00 ..., encoded = tokens (B, T, D) with T =
      1 + h * w, pre_logits (B, D). With `return_attention` also two lists of
      one (B, H, T, T) per block: attention, the maps that weight the values,
      which the cosine regularizer reads; and attention_softmax, the maps before
      re-attention.

    Raises:
      ValueError: num_heads does not divide width, no patch fits into the image,
        or the length of `reattn` is not `depth`.
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

    x = LayerNorm(epsilon=1e-6, dtype=dtype, name='encoder_norm')(x)
    out['encoded'] = out['tokens'] = x
    x = out['pre_logits'] = x[:, 0]
    return classify(x, self.num_classes, kernel_init=normal02), out


def _runs(plan: list[bool]) -> list[tuple[int, int]]:
  """(first, end) of each run of equal entries."""
  starts = [i for i in range(len(plan)) if i == 0 or plan[i] != plan[i - 1]]
  return list(zip(starts, [*starts[1:], len(plan)], strict=True))


def _last(blocks: int, depth: int) -> tuple[bool, ...]:
  """The field `reattn` of a model with re-attention in its last blocks."""
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
# The paper's L has 55M parameters and thus width 408; the published code has
# 420.
_register(
  'deepvit_l408',
  width=408,
  depth=32,
  reattn=_last(12, 32),
  adjustment=0.5,
  cnn_embed=True,
)
