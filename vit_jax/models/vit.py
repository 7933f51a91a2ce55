"""ViT: An Image is Worth 16x16 Words (arXiv:2010.11929).

One module covers the paper: every size, pooling and position embedding
(table D.3), the hybrid with a ResNet stem, and, by fields, the near relatives
that share its blocks: big_vision's ViT (arXiv:2205.01580), DeiT, DINOv2-style
layer scale, and area attention in the leading blocks (arXiv:1810.10126).

Parameters have the names of the released Google files, so that a file and a
tree can be compared by eye. B batch, T tokens, N patches, D width, H heads.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import attention, tpu_layout
from vit_jax.models.attention import MultiHeadDotProductAttention, normal02
from vit_jax.models.blocks import run_blocks
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.mlp import GELU, MlpBlock
from vit_jax.models.patches import (
  check_patches,
  conv_patches,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.registry import register
from vit_jax.models.resnet import hybrid_stem
from vit_jax.preprocessing import Preprocessing

# name: (width, depth, mlp_dim, num_heads); papers and big_vision.
SIZES = {
  'mu': (32, 1, 128, 2),  # for debugging
  'ti': (192, 12, 768, 3),
  's': (384, 12, 1536, 6),
  'm': (512, 12, 2048, 8),
  'b': (768, 12, 3072, 12),
  'l': (1024, 24, 4096, 16),
  'so400m': (1152, 27, 4304, 16),
  'h': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'gopt': (1536, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
  'Gopt': (1536, 48, 8192, 16),
  'e': (1792, 56, 15360, 16),
}
POOLS = ('token', 'gap', 'map', 'none')
POSEMBS = ('learn1d', 'learn2d', 'relative', 'sincos2d', 'none')
POSEMB_PLACES = ('stem', 'every_layer', 'every_layer_shared')


class Init(NamedTuple):
  """Initialisers of one code base; biases are functions of the fan-in."""

  kernel: Callable
  bias: Callable[[int], Callable]
  mlp_bias: Callable[[int], Callable]
  patch_kernel: Callable
  patch_bias: Callable[[int], Callable]
  table: Callable[[int], Callable]  # of the width
  token: Callable
  head: Callable


_zeros = lambda fan_in: nn.initializers.zeros
INITS = {
  'google': Init(
    nn.initializers.xavier_uniform(),
    _zeros,
    lambda fan_in: nn.initializers.normal(1e-6),
    nn.initializers.lecun_normal(),
    _zeros,
    lambda width: nn.initializers.normal(0.02),
    nn.initializers.zeros,
    nn.initializers.zeros,
  ),
  'big_vision': Init(
    nn.initializers.xavier_uniform(),
    _zeros,
    lambda fan_in: nn.initializers.normal(1e-6),
    nn.initializers.lecun_normal(),
    _zeros,
    lambda width: nn.initializers.normal(width**-0.5),
    nn.initializers.zeros,
    nn.initializers.zeros,
  ),
  'timm': Init(
    normal02,
    _zeros,
    _zeros,
    torch_conv_kernel,
    torch_conv_bias,
    lambda width: normal02,
    normal02,
    normal02,
  ),
  # PyTorch's own defaults (the area-attention project): N(0, 1) tables.
  'torch': Init(
    torch_conv_kernel,
    torch_conv_bias,
    torch_conv_bias,
    torch_conv_kernel,
    torch_conv_bias,
    lambda width: nn.initializers.normal(1.0),
    nn.initializers.normal(1.0),
    torch_conv_kernel,
  ),
}


def sincos2d(
  height: int, width: int, dim: int, temperature: float = 10_000.0
) -> jax.Array:
  """Fixed sine-cosine table (1, height * width, dim), rows first.

  Follows big_vision's form of arXiv:2104.02057: the last frequency is exactly
  1 / temperature. Raises ValueError if dim is not a multiple of 4.
  """
  if dim % 4 or dim < 8:
    raise ValueError(
      f'posemb sincos2d needs a width divisible by 4, at least 8; got {dim}'
    )
  y, x = jnp.mgrid[:height, :width]
  omega = jnp.arange(dim // 4, dtype=jnp.float32) / (dim // 4 - 1)
  omega = temperature**-omega
  y = jnp.einsum('n,d->nd', y.flatten().astype(jnp.float32), omega)
  x = jnp.einsum('n,d->nd', x.flatten().astype(jnp.float32), omega)
  return jnp.concatenate(
    [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1
  )[None]


class PositionEmbedding(nn.Module):
  """The table (1, prefix + N, D) of one position scheme, table D.3.

  `learn1d`: one row per token. `learn2d`: rows and columns of width D/2 each,
  concatenated; the prefix tokens have rows of their own. `sincos2d`: fixed,
  zero for the prefix.
  """

  scheme: str
  grid: tuple[int, int]
  prefix: int  # tokens before the patches
  table_init: Callable

  @nn.compact
  def __call__(self, width: int):
    height, columns = self.grid
    if self.scheme == 'learn1d':
      shape = (1, self.prefix + height * columns, width)
      return self.param('pos_embedding', self.table_init, shape)
    if self.scheme == 'learn2d':
      if width % 2:
        raise ValueError(f'posemb learn2d needs an even width, got {width}')
      rows = self.param(
        'row_embedding', self.table_init, (1, height, 1, width // 2)
      )
      cols = self.param(
        'col_embedding', self.table_init, (1, 1, columns, width // 2)
      )
      full = (1, height, columns, width // 2)
      table = jnp.concatenate(
        [jnp.broadcast_to(rows, full), jnp.broadcast_to(cols, full)], -1
      )
      table = table.reshape(1, height * columns, width)
      if self.prefix:
        own = self.param(
          'prefix_embedding', self.table_init, (1, self.prefix, width)
        )
        table = jnp.concatenate([own, table], axis=1)
      return table
    table = sincos2d(height, columns, width)
    return jnp.pad(table, ((0, 0), (self.prefix, 0), (0, 0)))


class EncoderBlock(nn.Module):
  """Pre-norm block: x + attention(LN(x)), then x + MLP(LN(x))."""

  num_heads: int
  mlp_dim: int
  grid: tuple[int, int]
  prefix: int = 0
  posemb: str | None = None  # a table of this block's own: learn1d, learn2d
  relative: bool = False
  area: tuple[int, int] | None = None  # largest area (height, width)
  dropout: float = 0.0
  attention_dropout: float = 0.0
  layer_scale: float | None = None
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6
  init_style: str = 'google'
  dtype: Any = jnp.float32
  return_attention: bool = False
  keep: int | None = None  # only the first tokens go on from here

  @nn.compact
  def __call__(self, x, rate, train: bool, table=None):
    """(B, T, D) -> (B, T, D) and aux: tokens and, if asked, attention."""
    width = x.shape[-1]
    init = INITS[self.init_style]
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype
    )
    if self.posemb:
      table = PositionEmbedding(
        self.posemb, self.grid, self.prefix, init.table(width), name='posembed'
      )(width)
    if table is not None:
      x = x + table.astype(x.dtype)

    y = norm(name='LayerNorm_0')(x)
    y, probs = MultiHeadDotProductAttention(
      self.num_heads,
      self.attention_dropout,
      dtype=self.dtype,
      kernel_init=init.kernel,
      bias_init=init.bias(width),
      attend_fn=self._attend_fn(width),
      before_dropout=train and self.dropout > 0,
      name='MultiHeadDotProductAttention_0',
    )(y[:, : self.keep], y, train)
    x = x[:, : self.keep]
    y = Dropout(self.dropout, deterministic=not train)(y)
    x = x + DropPath()(self._scale('gamma_1', y), rate, train)

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
    x = x + DropPath()(self._scale('gamma_2', y), rate, train)

    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = probs
    return x, aux

  def _scale(self, name, y):
    if self.layer_scale is None:
      return y
    gamma = self.param(
      name, nn.initializers.constant(self.layer_scale), (y.shape[-1],)
    )
    return y * gamma.astype(y.dtype)[None, None]

  def _attend_fn(self, width):
    if self.area is not None:
      from vit_jax.models.area.attention import area_attend

      two_d = self.area[0] > 1
      return area_attend(
        self.area, self.grid if two_d else None, weights=self.return_attention
      )
    if not self.relative:
      return attention.attend
    # One embedding per 1-D offset, shared by the heads; the original query
    # attends to it (table D.3: relative embeddings have no place but the
    # attention itself).
    tokens = self.prefix + self.grid[0] * self.grid[1]
    embedding = self.param(
      'relative_embedding',
      INITS[self.init_style].table(width),
      (2 * tokens - 1, width // self.num_heads),
    )

    def attend(q, k, v, **kwargs):
      logits = jnp.einsum(
        'bthk,rk->bhtr', q * (q.shape[-1] ** -0.5), embedding.astype(q.dtype)
      )
      offset = jnp.arange(tokens)[None] - jnp.arange(tokens)[:, None]
      index = jnp.broadcast_to(
        (offset + tokens - 1)[None, None], (*logits.shape[:2], tokens, tokens)
      )
      bias = jnp.take_along_axis(logits, index, axis=-1)
      return attention.attend(q, k, v, bias=bias.astype(jnp.float32), **kwargs)

    return attend


class Encoder(nn.Module):
  """Position embedding, blocks and final norm; named `Transformer`."""

  depth: int
  block: dict[str, Any]  # fields of EncoderBlock
  posemb: str = 'learn1d'
  posemb_at: str = 'stem'
  area_sizes: tuple = ()
  drop_path: float = 0.0
  final_norm: bool = True
  remat: str = 'none'
  scan: bool = False
  class_token_only: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, T, D) -> (B, T, D) after the final norm, dict of intermediates."""
    width, block = x.shape[-1], dict(self.block)
    block['relative'] = self.posemb == 'relative'
    table = None
    if self.posemb in ('learn1d', 'learn2d', 'sincos2d'):
      if self.posemb_at == 'every_layer' and self.posemb != 'sincos2d':
        block['posemb'] = self.posemb
      else:
        table = PositionEmbedding(
          self.posemb,
          block['grid'],
          block['prefix'],
          INITS[block['init_style']].table(width),
          name='posembed_input',
        )(width)
    every = table is not None and self.posemb_at != 'stem'
    if table is not None and not every:
      x = x + table.astype(x.dtype)
    x = Dropout(block['dropout'], deterministic=not train)(x)
    x = tpu_layout.pin(x)
    out = {'with_posemb': x}

    rates = drop_path_rates(self.drop_path, self.depth)
    extra = (table,) if every else ()
    auxes = []
    for i, area in enumerate(self.area_sizes):
      x, aux = run_blocks(
        functools.partial(EncoderBlock, **block, area=tuple(area)),
        x,
        rates[i : i + 1],
        train,
        name='encoderblock',
        remat=self.remat,
        first=i,
        extra=extra,
      )
      auxes += aux
    first = len(self.area_sizes)
    last = self.depth - (train and self.class_token_only)
    x, aux = run_blocks(
      functools.partial(EncoderBlock, **block),
      x,
      rates[first:last],
      train,
      name='encoderblock',
      remat=self.remat,
      scan=self.scan,
      first=first,
      extra=extra,
    )
    auxes += aux
    if last < self.depth:
      x, aux = run_blocks(
        functools.partial(EncoderBlock, **block, keep=1),
        x,
        rates[last:],
        train,
        name='encoderblock',
        remat=self.remat,
        first=last,
        extra=extra,
      )
      auxes += aux
    for i, aux in enumerate(auxes):
      out[f'block_{i:02d}'] = aux['tokens']
    if block['return_attention']:
      out['attention'] = [aux['attention'] for aux in auxes]
    if self.final_norm:
      x = nn.LayerNorm(
        epsilon=block['norm_eps'], dtype=block['dtype'], name='encoder_norm'
      )(x)
    return x, out


class MAPHead(nn.Module):
  """Multi-head attention pooling with one learned query (arXiv:2106.04560)."""

  num_heads: int
  mlp_dim: int
  activation: str
  norm_eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, T, D) -> (B, D)."""
    probe = self.param(
      'probe', nn.initializers.xavier_uniform(), (1, 1, x.shape[-1])
    ).astype(x.dtype)
    probe = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1]))
    x, _ = MultiHeadDotProductAttention(
      self.num_heads, dtype=self.dtype, name='MultiHeadDotProductAttention_0'
    )(probe, x, train)
    y = nn.LayerNorm(
      epsilon=self.norm_eps, dtype=self.dtype, name='LayerNorm_0'
    )(x)
    x = x + MlpBlock(
      self.mlp_dim,
      activation=self.activation,
      dtype=self.dtype,
      name='MlpBlock_0',
    )(y, train)
    return x[:, 0]


class ViT(nn.Module):
  """The Vision Transformer; see the module docstring."""

  num_classes: int = 1000  # 0: no head, logits are pre_logits
  patch_size: Any = 16  # int or (height, width)
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  pool: str = 'token'  # POOLS; 'none' applies the head to every token
  class_token: bool | None = None  # None: only for pool 'token'
  representation_size: int | None = None  # tanh layer before the head
  posemb: str = 'learn1d'  # POSEMBS
  posemb_at: str = 'stem'  # POSEMB_PLACES
  area_sizes: tuple = ()  # one (height, width) per leading area block
  stem: tuple | None = None  # units per ResNet stage; () is the root alone
  stem_width: float = 1.0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # of the last block; linear from 0 at the first
  layer_scale: float | None = None  # initial value (CaiT, DINOv2)
  norm_after_pool: bool = False  # timm's fc_norm instead of encoder_norm
  activation: str = 'gelu_tanh'  # or 'gelu_erf' (PyTorch weights)
  norm_eps: float = 1e-6
  init_style: str = 'google'  # INITS
  head_bias: float = 0.0  # -10 or -6.9 with a sigmoid loss
  dtype: Any = jnp.float32
  remat: str = 'none'
  scan: bool = False
  return_attention: bool = False
  # In training the last block computes only what the head reads, the class
  # token: the same logits and gradients for 2 to 5 % less work; `tokens` and
  # `encoded` then have one token.
  class_token_only: bool = False

  def _check(self):
    for field, allowed in (
      ('pool', POOLS),
      ('posemb', POSEMBS),
      ('posemb_at', POSEMB_PLACES),
      ('init_style', INITS),
      ('activation', GELU),
    ):
      if getattr(self, field) not in allowed:
        raise ValueError(
          f'{field}={getattr(self, field)!r}; allowed: {", ".join(allowed)}'
        )
    if self.posemb in ('relative', 'none') and self.posemb_at != 'stem':
      raise ValueError(
        f'posemb={self.posemb!r} has no table to add at '
        f"{self.posemb_at!r}; use posemb_at='stem'"
      )
    if len(self.area_sizes) > self.depth:
      raise ValueError(
        f'area_sizes has {len(self.area_sizes)} entries for {self.depth} blocks'
      )
    if self.area_sizes and self.posemb == 'relative':
      raise ValueError("area_sizes and posemb='relative' exclude each other")
    if self.class_token_only and (
      self.pool != 'token'
      or self.scan
      or self.return_attention
      or self.posemb == 'relative'
      or len(self.area_sizes) == self.depth
    ):
      raise ValueError(
        "class_token_only=True goes with pool='token' and unrolled blocks, "
        'without return_attention, relative positions, or areas in the last '
        'block'
      )

  @nn.compact
  def __call__(self, images, *, train: bool):
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalised.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      logits (B, num_classes), float32, per token for pool 'none'; and a dict
      of intermediates: stem (B, h, w, D), with_posemb, block_00 ..., encoded =
      tokens (B, T, D), head_input, pre_logits, and attention if asked.
    """
    self._check()
    init, dtype = INITS[self.init_style], jnp.dtype(self.dtype)
    x, out = images.astype(dtype), {}
    if self.stem is not None:
      x, features = hybrid_stem(
        x, tuple(self.stem), self.stem_width, dtype, self.remat
      )
      out.update(features)
    check_patches(*x.shape[1:3], self.patch_size)
    patch = conv_patches(self.width, self.patch_size)
    x = conv_patches(
      self.width,
      self.patch_size,
      dtype=dtype,
      kernel_init=init.patch_kernel,
      bias_init=init.patch_bias(
        patch.kernel_size[0] * patch.kernel_size[1] * x.shape[-1]
      ),
      name='embedding',
    )(x)
    out['stem'] = x
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, self.width)

    has_class = (
      self.pool == 'token' if self.class_token is None else (self.class_token)
    )
    if self.pool == 'token' and not has_class:
      raise ValueError("pool='token' needs class_token=True (or None)")
    if has_class:
      cls = self.param('cls', init.token, (1, 1, self.width)).astype(dtype)
      x = jnp.concatenate(
        [jnp.broadcast_to(cls, (batch, 1, self.width)), x], axis=1
      )
    prefix = int(has_class)

    block = dict(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      grid=(height, width),
      prefix=prefix,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      layer_scale=self.layer_scale,
      activation=self.activation,
      norm_eps=self.norm_eps,
      init_style=self.init_style,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    x, features = Encoder(
      self.depth,
      block,
      self.posemb,
      self.posemb_at,
      self.area_sizes,
      self.drop_path,
      not self.norm_after_pool,
      self.remat,
      self.scan,
      self.class_token_only,
      name='Transformer',
    )(x, train)
    out.update(features)
    out['encoded'] = out['tokens'] = x

    if self.pool == 'token':
      x = x[:, 0]
    elif self.pool == 'gap':
      x = x[:, prefix:].mean(axis=1)
    elif self.pool == 'map':
      x = MAPHead(
        self.num_heads,
        self.mlp_dim,
        self.activation,
        self.norm_eps,
        dtype,
        name='MAPHead_0',
      )(x, train)
    if self.norm_after_pool:
      x = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='fc_norm')(x)
    out['head_input'] = x
    if self.representation_size:
      x = jnp.tanh(
        nn.Dense(self.representation_size, dtype=dtype, name='pre_logits')(x)
      )
    out['pre_logits'] = x
    if self.num_classes:
      x = nn.Dense(
        self.num_classes,
        dtype=dtype,
        kernel_init=init.head,
        bias_init=nn.initializers.constant(self.head_bias),
        name='head',
      )(x)
    return x.astype(jnp.float32), out


def _fields(size: str) -> dict[str, int]:
  return dict(
    zip(('width', 'depth', 'mlp_dim', 'num_heads'), SIZES[size], strict=True)
  )


_RELEASED = {
  'vit_ti16': ('augreg/Ti_16-*.npz', 'vit_tiny_patch16_224'),
  'vit_s16': ('augreg/S_16-*.npz', 'vit_small_patch16_224'),
  'vit_s32': ('augreg/S_32-*.npz', 'vit_small_patch32_224'),
  'vit_b8': ('imagenet21k/ViT-B_8.npz', 'vit_base_patch8_224'),
  'vit_b16': (
    'imagenet21k/ViT-B_16.npz',
    'augreg/B_16-*.npz',
    'vit_base_patch16_224',
  ),
  'vit_b32': (
    'imagenet21k/ViT-B_32.npz',
    'augreg/B_32-*.npz',
    'vit_base_patch32_224',
  ),
  'vit_l16': (
    'imagenet21k/ViT-L_16.npz',
    'augreg/L_16-*.npz',
    'vit_large_patch16_224',
  ),
  'vit_l32': ('imagenet21k/ViT-L_32.npz', 'vit_large_patch32_224'),
  'vit_h14': ('imagenet21k/ViT-H_14.npz', 'vit_huge_patch14_224'),
}
for _size in SIZES:
  for _patch in (8, 14, 16, 32):
    _name = f'vit_{_size}{_patch}'
    register(
      _name,
      ViT,
      released=_RELEASED.get(_name, ()),
      patch_size=_patch,
      **_fields(_size),
    )

# Hybrids. R+Ti/16 keeps its published name although its total stride is 32:
# the root ends with a stride-2 pool in the code and in the weights.
for _name, _size, _patch, _stem, _file in (
  ('r_vit_ti16', 'ti', 8, (), 'augreg/R_Ti_16-*.npz'),
  ('r26_vit_s32', 's', 1, (2, 2, 2, 2), 'augreg/R26_S_32-*.npz'),
  ('r26_vit_b32', 'b', 1, (2, 2, 2, 2), 'imagenet21k/R26+ViT-B_32.npz'),
  ('r50_vit_b16', 'b', 1, (3, 4, 9), 'imagenet21k/R50+ViT-B_16.npz'),
  ('r50_vit_l32', 'l', 1, (3, 4, 6, 3), 'imagenet21k/R50+ViT-L_32.npz'),
):
  register(
    _name,
    ViT,
    released=(_file,),
    patch_size=_patch,
    stem=_stem,
    **_fields(_size),
  )

# Area attention in the first two blocks, areas of at most 2 tokens; second
# version of the published project (LayerNorm epsilon 1e-5, erf GELU).
for _size in ('ti', 's', 'b'):
  register(
    f'aa_vit_{_size}16',
    ViT,
    preprocessing=Preprocessing(
      crop=0.875, interpolation='bicubic', normalize='imagenet'
    ),
    patch_size=16,
    area_sizes=((1, 2), (1, 2)),
    norm_eps=1e-5,
    activation='gelu_erf',
    init_style='torch',
    **_fields(_size),
  )

# DINOv2's shape (arXiv:2304.07193, without registers): layer scale, features
# only. The g/14 of that paper has another MLP.
for _size, _word in (('s', 'small'), ('b', 'base'), ('l', 'large')):
  register(
    f'vit_{_size}14_dinov2',
    ViT,
    preprocessing=Preprocessing(
      (518, 518), crop=1.0, interpolation='bicubic', normalize='imagenet'
    ),
    patch_size=14,
    layer_scale=1e-5,
    activation='gelu_erf',
    released=(f'vit_{_word}_patch14_dinov2.lvd142m',),
    **_fields(_size),
  )
