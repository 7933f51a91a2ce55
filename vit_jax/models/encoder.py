"""The encoder of ViT (arXiv:2010.11929, eq. 1-3), which DeiT uses too.

Position embeddings, pre-norm blocks and the final norm, with the parameter
names of the released Google files. B batch, T tokens, D width, H heads.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models import tpu_layout
from vit_jax.models.area.attention import area_attend
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.blocks import run_blocks, scale_channels
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.fused import attend as fused
from vit_jax.models.initializers import INITIALIZERS
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.position import (
  TABLES,
  PositionEmbedding,
  relative_attention,
)
from vit_jax.models.products import add_parameter


class EncoderBlock(nn.Module):
  """Pre-norm block: x + attention(LN(x)), then x + MLP(LN(x)).

  Attributes:
    num_heads: H.
    mlp_dim: width of the MLP's hidden layer.
    grid: (height, width) of the patches.
    prefix: number of tokens in front of the patches.
    posemb: kind of a position table of the block's own, 'learn1d' or 'learn2d';
      None for no such table.
    relative: whether the attention has relative position embeddings.
    area: (height, width) of the largest area of area attention; None for
      ordinary attention.
    dropout: rate after the attention and in the MLP.
    attention_dropout: rate on the attention probabilities.
    layer_scale: initial value of LayerScale, a learned factor for each channel
      of both branches; None for no factors.
    activation: key of `activations.GELU`.
    norm_eps: what LayerNorm adds to the variance.
    init_style: key of `initializers.INITIALIZERS`.
    dtype: dtype of the activations.
    return_attention: whether the attention probabilities are returned.
    keep_tokens: number of leading tokens that the block computes; the others
      are keys and values only. None for all.
  """

  num_heads: int
  mlp_dim: int
  grid: tuple[int, int]
  prefix: int = 0
  posemb: str | None = None
  relative: bool = False
  area: tuple[int, int] | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  layer_scale: float | None = None
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6
  init_style: str = 'google'
  dtype: DTypeLike = jnp.float32
  return_attention: bool = False
  keep_tokens: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    rate: float | jax.Array,
    train: bool,
    table: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Applies the block.

    Args:
      x: (B, T, D).
      rate: drop-path rate of both branches.
      train: turns dropout and drop path on (rng stream 'dropout').
      table: position embeddings that are added to x, (1, T, D).

    Returns:
      (B, T, D), or (B, keep_tokens, D); and intermediates: 'tokens', the same
      array, and with `return_attention` 'attention' (B, H, T, T).
    """
    width = x.shape[-1]
    init = INITIALIZERS[self.init_style]
    norm = functools.partial(LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
    if self.posemb:
      table = PositionEmbedding(
        self.posemb, self.grid, self.prefix, init.table(width), name='posembed'
      )(width)
    if table is not None:
      x = add_parameter(x, table[0].astype(x.dtype))

    y = norm(name='LayerNorm_0')(x)
    attend, attention = self._attend_fn(width), MultiHeadDotProductAttention
    drops = train and self.attention_dropout > 0
    if attend is fused.attend and not (drops or self.keep_tokens):
      attention = fused.attention_module(y, self.num_heads)
    y, probs = attention(
      self.num_heads,
      self.attention_dropout,
      dtype=self.dtype,
      kernel_init=init.kernel,
      bias_init=init.bias(width),
      attend_fn=attend,
      before_dropout=train and self.dropout > 0,
      name='MultiHeadDotProductAttention_0',
    )(y[:, : self.keep_tokens], y, train)
    x = x[:, : self.keep_tokens]
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = scale_channels(self, 'gamma_1', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)

    y = norm(name='LayerNorm_1')(x)
    y = MlpBlock(
      self.mlp_dim,
      self.dropout,
      self.activation,
      self.dtype,
      init.kernel,
      init.mlp_bias(width),
      init.mlp_bias(self.mlp_dim),
      name='MlpBlock_0',
    )(y, train)
    y = scale_channels(self, 'gamma_2', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)

    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = probs
    return x, aux

  def _attend_fn(self, width: int) -> Callable[..., Any]:
    """The function that computes attention from queries, keys and values."""
    if self.area is not None:
      return area_attend(
        (self.area[0], self.area[1]),
        self.grid if self.area[0] > 1 else None,
        weights=self.return_attention,
      )
    if not self.relative:
      return fused.attend_fn(self.return_attention)
    tokens = self.prefix + self.grid[0] * self.grid[1]
    embedding = self.param(
      'relative_embedding',
      INITIALIZERS[self.init_style].table(width),
      (2 * tokens - 1, width // self.num_heads),
    )
    return relative_attention(embedding)


class Encoder(nn.Module):
  """Position embedding, blocks and final norm; models name it `Transformer`.

  Attributes:
    depth: number of blocks.
    block: fields of `block_cls` that all blocks share.
    block_cls: class of the blocks.
    numbered: whether blocks have a field `number`, theirs from 0.
    posemb: one of `position.POSEMBS`.
    posemb_at: one of `position.POSEMB_AT`.
    prefix_posemb: whether the table has rows for the tokens in front of the
      patches.
    area_sizes: the field `area` of each leading block with area attention.
    drop_path: rate of the last block; linear from 0 at the first.
    pre_norm: a module that normalizes the tokens before the first block.
    final_norm: whether there is a norm after the last block.
    norm: class of this norm.
    remat: key of `blocks.REMAT`.
    scan: compiles one program for all blocks after the area blocks.
    class_token_only: whether the last block computes only the first token, in
      training.
  """

  depth: int
  block: Mapping[str, Any]
  block_cls: Callable[..., nn.Module] = EncoderBlock
  numbered: bool = False
  posemb: str = 'learn1d'
  posemb_at: str = 'stem'
  prefix_posemb: bool = True
  area_sizes: tuple = ()
  drop_path: float = 0.0
  pre_norm: nn.Module | None = None
  final_norm: bool = True
  norm: Callable[..., nn.Module] = LayerNorm
  remat: str = 'none'
  scan: bool = False
  class_token_only: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Encodes tokens.

    Args:
      x: (B, T, D).
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      (B, T, D), float32 if there is a final norm; and intermediates:
      'with_posemb' and 'block_00' ... (B, T, D), and with `return_attention`
      'attention', a list of one (B, H, T, T) per block.
    """
    width, block = x.shape[-1], dict(self.block)
    if self.posemb == 'relative':
      block['relative'] = True
    table = None
    if self.posemb in TABLES:
      # Learned tables can differ between blocks. The fixed one cannot, so all
      # blocks share it.
      if self.posemb_at == 'every_layer' and self.posemb != 'sincos2d':
        block['posemb'] = self.posemb
      else:
        rows = block['prefix'] if self.prefix_posemb else 0
        table = PositionEmbedding(
          self.posemb,
          block['grid'],
          rows,
          INITIALIZERS[block['init_style']].table(width),
          name='posembed_input',
        )(width)
        table = jnp.pad(table, ((0, 0), (block['prefix'] - rows, 0), (0, 0)))
    extra = ()  # further arguments of every block
    if table is not None and self.posemb_at == 'stem':
      x = add_parameter(x, table[0].astype(x.dtype))
    elif table is not None:
      extra = (table,)
    x = Dropout(block['dropout'], deterministic=not train)(x)
    if self.pre_norm is not None:
      x = self.pre_norm(x)
    x = tpu_layout.constrain(x)
    out: dict[str, Any] = {'with_posemb': x}

    rates = drop_path_rates(self.drop_path, self.depth)
    auxes = []
    for first, end, fields in self._runs(train):
      x, more = run_blocks(
        functools.partial(self.block_cls, **block, **fields),
        x,
        rates[first:end],
        train,
        name='encoderblock',
        remat=self.remat,
        scan=self.scan and not fields,
        first=first,
        extra=extra,
      )
      auxes += more
    for i, aux in enumerate(auxes):
      out[f'block_{i:02d}'] = aux['tokens']
    if block['return_attention']:
      out['attention'] = [aux['attention'] for aux in auxes]
    if self.final_norm:
      # The head reads the result, so it is float32, as in big_vision.
      x = self.norm(
        epsilon=block['norm_eps'], dtype=jnp.float32, name='encoder_norm'
      )(x)
    return x, out

  def _runs(self, train: bool) -> list[tuple[int, int, dict[str, Any]]]:
    """The runs of equal blocks: (first block, end, fields that differ)."""
    if self.numbered:
      return [(i, i + 1, {'number': i}) for i in range(self.depth)]
    runs: list[tuple[int, int, dict[str, Any]]] = [
      (i, i + 1, {'area': tuple(area)})
      for i, area in enumerate(self.area_sizes)
    ]
    end = self.depth - int(train and self.class_token_only)
    runs.append((len(self.area_sizes), end, {}))
    runs.append((end, self.depth, {'keep_tokens': 1}))
    return [run for run in runs if run[0] < run[1]]
