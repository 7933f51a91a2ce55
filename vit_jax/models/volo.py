"""VOLO: Vision Outlooker for Visual Recognition (arXiv:2106.13112).

A convolutional stem gives a fine map (28x28 at 224). Outlookers mix it in
overlapping 3x3 windows whose weights are one linear map of the window's mean,
without queries and keys; a strided convolution halves the map, transformers
follow, and class attention reads it. Each patch token is classified too, by an
auxiliary head that is trained on token labels (arXiv:2104.10858), with MixToken
pasting a box of another image's features into the map.
B batch, (H, W) map, (h, w) windows, N tokens, T = 1 + N, D width, K head width.
"""

import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import tpu_layout
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import run_blocks
from vit_jax.models.dropout import Dropout, DropPath
from vit_jax.models.initializers import (
  normal02,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.patches import check_patches, conv_patches
from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing

EPSILON = 1e-5  # of LayerNorm

# name: blocks per group, widths and heads of the two stages, MLP ratio, stem.
SIZES = {
  'd1': ((4, 4, 8, 2), (192, 384), (6, 12), 3, 64),
  'd2': ((6, 4, 10, 4), (256, 512), (8, 16), 3, 64),
  'd3': ((8, 8, 16, 4), (256, 512), (8, 16), 3, 64),
  'd4': ((8, 8, 16, 4), (384, 768), (12, 16), 3, 64),
  'd5': ((12, 12, 20, 4), (384, 768), (12, 16), 4, 128),
}

# One axis of the 3x3 windows at stride 2. Position 2i is the middle entry (1)
# of window i; 2i + 1 is the last (2) of window i and the first (0) of i + 1.
_WINDOWS = {0: ((0, 1),), 1: ((0, 2), (1, 0))}  # parity: (shift, entry), ...


def outlook(weights, v):
  """Mixes values in overlapping 3x3 windows at stride 2 (eq. 4 and 5).

  Window (i, j) is centred at (2i, 2j); its entry q receives the sum over its
  entries k of weights[q, k] * v[k], and a position adds up what it receives as
  an entry of one, two or four windows (no division).

  Instead of unfolding v (9/4 of its size), weighing (the same again) and
  folding, the weights of a pair of positions are added first over the windows
  that hold both: a position then takes 9, 15 or 25 neighbours once each, 16 on
  average where the windows make 20.25. Everything is shifted products of the
  four parity planes of v, so XLA fuses them and no unfolded copy exists,
  forward or backward.

  Args:
    weights: (B, h, w, H, 9, 9), h = ceil(height / 2), w = ceil(width / 2).
    v: (B, height, width, H, K).

  Returns:
    (B, height, width, H, K).
  """
  height, width = v.shape[1:3]
  windows = weights.shape[1:3]
  pad = lambda x, rows, columns: jnp.pad(
    x, ((0, 0), rows, columns) + ((0, 0),) * (x.ndim - 3)
  )
  planes = {}  # (row parity, column parity): (B, 1 + h + 1, 1 + w + 1, H, K)
  padded = pad(v, (2, 2 + height % 2), (2, 2 + width % 2))
  for row in (0, 1):
    for column in (0, 1):
      planes[row, column] = padded[:, row::2, column::2]
  # Split, not indexed: the gradient is then a concatenation.
  weights = pad(weights, (0, 1), (0, 1)).reshape(
    *(n if i in (0, 3) else n + 1 for i, n in enumerate(weights.shape[:4])), 81
  )
  weights = jnp.split(weights, 81, axis=-1)

  def shift(x, i, j):
    return x[:, i : i + windows[0], j : j + windows[1]]

  rows = []
  for row in (0, 1):
    columns = []
    for column in (0, 1):
      pairs = {}  # offset of the neighbour from (2i, 2j): weights to add
      for si, qi in _WINDOWS[row]:
        for sj, qj in _WINDOWS[column]:
          for k in range(9):
            offset = 2 * si + k // 3 - 1, 2 * sj + k % 3 - 1
            weight = weights[9 * (3 * qi + qj) + k]
            pairs.setdefault(offset, []).append(shift(weight, si, sj))
      columns.append(
        sum(
          sum(pair) * shift(planes[oi % 2, oj % 2], oi // 2 + 1, oj // 2 + 1)
          for (oi, oj), pair in pairs.items()
        )
      )
    rows.append(jnp.stack(columns, axis=3))
  y = jnp.stack(rows, axis=2)  # (B, h, 2, w, 2, H, K)
  y = y.reshape(y.shape[0], 2 * y.shape[1], 2 * y.shape[3], *y.shape[5:])
  return y[:, :height, :width]


class OutlookAttention(nn.Module):
  """Outlook attention, 3x3 windows at stride 2 (section 3.1)."""

  num_heads: int
  qkv_bias: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, H, W, D) -> the same, probabilities (B, heads, h * w, 9, 9)."""
    batch, height, width, dim = x.shape
    if dim % self.num_heads:
      raise ValueError(
        f'width {dim} is not divisible by num_heads {self.num_heads}'
      )
    head_width = dim // self.num_heads
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=normal02)
    v = dense(dim, use_bias=self.qkv_bias, name='v')(x)
    v = v.reshape(batch, height, width, self.num_heads, head_width)
    mean = nn.avg_pool(
      x,
      (2, 2),
      (2, 2),
      ((0, height % 2), (0, width % 2)),
      count_include_pad=False,
    )
    logits = dense(81 * self.num_heads, name='attn')(mean)
    logits = logits.reshape(*mean.shape[:3], self.num_heads, 9, 9)
    probs = jax.nn.softmax(logits.astype(jnp.float32) * head_width**-0.5)
    weights = Dropout(self.dropout, deterministic=not train)(probs)
    y = outlook(weights.astype(self.dtype), v).reshape(x.shape)
    maps = probs.reshape(batch, -1, self.num_heads, 9, 9).swapaxes(1, 2)
    return dense(dim, name='out')(y), maps


class Block(nn.Module):
  """x + attention(LN(x)), then x + MLP(LN(x)).

  kind 'outlooker' works on maps (B, H, W, D), 'block' on tokens (B, N, D),
  'cls_block' on (B, T, D), where the class token alone is updated.
  """

  kind: str
  num_heads: int
  mlp_dim: int
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  dtype: Any = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(self, x, rate, train: bool):
    """x -> the same shape, aux."""
    norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)
    y = norm()(x)
    if self.kind == 'outlooker':
      y, maps = OutlookAttention(
        self.num_heads,
        self.qkv_bias,
        self.attention_dropout,
        self.dtype,
        name='attn',
      )(y, train)
    else:
      query = y
      if self.kind == 'cls_block':
        x, rest, query = x[:, :1], x[:, 1:], y[:, :1]
      y, maps = MultiHeadDotProductAttention(
        self.num_heads,
        self.attention_dropout,
        self.qkv_bias,
        self.dtype,
        kernel_init=normal02,
        name='attn',
      )(query, y, train)
    x = x + DropPath()(y, rate, train)
    y = MlpBlock(
      self.mlp_dim,
      self.dropout,
      self.activation,
      self.dtype,
      normal02,
      nn.initializers.zeros,
      name='mlp',
    )(norm()(x), train)
    x = x + DropPath()(y, rate, train)
    if self.kind == 'cls_block':
      x = jnp.concatenate([x, rest], axis=1)
    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = maps
    return x, aux


class Stem(nn.Module):
  """Three convolutions with BatchNorm and ReLU, then disjoint patches."""

  width: int
  patch_size: int
  hidden: int = 64
  bn_groups: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, height, width, 3) -> (B, height / patch_size, ..., width)."""
    x = x.astype(self.dtype)
    for i, (size, stride) in enumerate(((7, 2), (3, 1), (3, 1))):
      x = nn.Conv(
        self.hidden,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        name=f'conv_{i}',
        kernel_init=torch_conv_kernel,
      )(x)
      x = nn.relu(
        BatchNorm(groups=self.bn_groups, dtype=self.dtype, name=f'bn_{i}')(
          x, train
        )
      )
    size = self.patch_size // 2
    check_patches(*x.shape[1:3], size)
    return _conv(self.width, size, self.hidden, self.dtype, 'proj')(x)


def _conv(width, size, channels, dtype, name) -> nn.Conv:
  return conv_patches(
    width,
    size,
    dtype=dtype,
    name=name,
    kernel_init=torch_conv_kernel,
    bias_init=torch_conv_bias(channels * size**2),
  )


def mix_box(rng, grid: tuple[int, int]):
  """The box of MixToken: (row1, column1, row2, column2), int32, may be empty.

  λ ~ Beta(1, 1) = U(0, 1); sides sqrt(1 - λ) of the grid's, rounded down; the
  centre is uniform and the box is cut at the border.
  """
  lam_rng, *rngs = jax.random.split(rng, 3)
  side = jnp.sqrt(1 - jax.random.uniform(lam_rng))
  ends = []
  for key, size in zip(rngs, grid, strict=True):
    half = (size * side).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, size)
    ends.append(
      (jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size))
    )
  (row1, row2), (column1, column2) = ends
  return row1, column1, row2, column2


def swap_box(x, box, scale: int = 1):
  """(B, H, W, C) with the box, times `scale`, taken from the reversed batch."""
  row1, column1, row2, column2 = (scale * b for b in box)
  rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
  inside = ((rows >= row1) & (rows < row2))[:, None] & (
    (columns >= column1) & (columns < column2)
  )[None, :]
  return jnp.where(inside[None, :, :, None], x[::-1], x)


class Segment(NamedTuple):
  """A run of equal blocks of the network, or a downsampling convolution."""

  kind: str  # 'outlooker', 'block' or 'downsample'
  width: int
  num_heads: int = 0
  mlp_dim: int = 0
  rates: tuple[float, ...] = ()  # drop path per block
  add_posemb: bool = False  # before this segment


class VOLO(nn.Module):
  """Vision outlooker; see the module docstring. One tuple entry per group."""

  num_classes: int = 1000  # 0: no heads, logits are pre_logits
  patch_size: int = 8  # of the stem; the tokens are twice as coarse
  layers: tuple[int, ...] = (4, 4, 8, 2)  # blocks per group
  embed_dims: tuple[int, ...] = (192, 384, 384, 384)
  num_heads: tuple[int, ...] = (6, 12, 12, 12)
  mlp_ratios: tuple[float, ...] = (3, 3, 3, 3)
  outlook_attention: tuple[bool, ...] = (True, False, False, False)
  downsamples: tuple[bool, ...] = (True, False, False, False)  # after a group
  post_layers: tuple[str, ...] = ('ca', 'ca')  # class attention
  stem_hidden_dim: int = 64
  qkv_bias: bool = False
  return_dense: bool = True  # the auxiliary head on every token
  return_mean: bool = False  # classify the mean token; excludes return_dense
  mix_token: bool = True  # in training
  bn_groups: int = 1  # BatchNorm statistics per group of the batch; 1: global
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # of the last transformer block; outlookers have none
  activation: str = 'gelu_erf'
  dtype: Any = jnp.float32
  remat: str = 'none'
  scan: bool = False  # the first run of outlookers and of transformers
  return_attention: bool = False

  def plan(self) -> list[Segment]:
    """The network between stem and class blocks; equal groups are one run."""
    self._check()
    total = max(1, sum(self.layers) - 1)
    plan, index, posemb_at = [], 0, 2  # the released code's: its third element
    for g, count in enumerate(self.layers):
      width, heads = self.embed_dims[g], self.num_heads[g]
      mlp_dim = int(width * self.mlp_ratios[g])
      if self.outlook_attention[g]:
        kind, rates = 'outlooker', (0.0,) * count
      else:
        before = sum(self.layers[:g])
        kind, rates = (
          'block',
          tuple(self.drop_path * (before + j) / total for j in range(count)),
        )
      new = Segment(kind, width, heads, mlp_dim, rates, index == posemb_at)
      index += 1
      if plan and not new.add_posemb and plan[-1][:4] == new[:4]:
        plan[-1] = plan[-1]._replace(rates=plan[-1].rates + rates)
      else:
        plan.append(new)
      if self.downsamples[g]:
        plan.append(
          Segment(
            'downsample', self.embed_dims[g + 1], add_posemb=index == posemb_at
          )
        )
        index += 1
    return plan

  @nn.compact
  def __call__(self, images, *, train: bool):
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalised.
      train: turns dropout, drop path and MixToken on (rng stream 'dropout'),
        and BatchNorm to the batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32: of the class token in training; else
      plus half the maximum over the tokens of the auxiliary head's. And a dict:
      stem, with_posemb (B, H, W, D), outlooker_00 ..., downsample (B, H, W, D),
      block_00 ... (B, N, D), cls_block_00 ..., encoded = tokens (B, T, D),
      pre_logits (B, D), logits_class (B, num_classes), logits_aux
      (B, N, num_classes), in training already unmixed; and if MixToken mixed,
      mix_box (row1, column1, row2, column2) on the grid of tokens. With
      `return_attention` also, one array per block, attention (B, H, N, N),
      attention_outlook (B, H, windows, 9, 9), attention_cls (B, H, 1, T).

    Raises:
      ValueError: fields that contradict each other, width not divisible by
        num_heads, or no patch fits.
    """
    plan, dtype = self.plan(), jnp.dtype(self.dtype)
    x = Stem(
      self.embed_dims[0],
      self.patch_size,
      self.stem_hidden_dim,
      self.bn_groups,
      dtype,
      name='stem',
    )(images, train)
    out = {'stem': x}
    scale = 2 ** sum(self.downsamples)
    box = None
    if train and self.mix_token and self.return_dense:
      box = mix_box(
        self.make_rng('dropout'), (x.shape[1] // scale, x.shape[2] // scale)
      )
      x = swap_box(x, box, scale)

    block = functools.partial(
      Block,
      qkv_bias=self.qkv_bias,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      activation=self.activation,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    counts = {'outlooker': 0, 'block': 0, 'downsample': 0}
    maps = {'outlooker': [], 'block': [], 'cls_block': []}
    for segment in plan:
      if segment.add_posemb:
        table = self.param('pos_embedding', normal02, (1, *x.shape[1:]))
        x = x + table.astype(dtype)
        x = Dropout(self.dropout, deterministic=not train)(x)
        out['with_posemb'] = x
      x = tpu_layout.constrain(x)
      first = counts[segment.kind]
      if segment.kind == 'downsample':
        name = f'downsample_{first}' if first else 'downsample'
        x = out[name] = _conv(segment.width, 2, x.shape[-1], dtype, name)(x)
        counts['downsample'] += 1
        continue
      shape = x.shape
      if segment.kind == 'block':
        x = x.reshape(shape[0], math.prod(shape[1:3]), shape[3])
      x, auxes = run_blocks(
        functools.partial(
          block,
          kind=segment.kind,
          num_heads=segment.num_heads,
          mlp_dim=segment.mlp_dim,
        ),
        x,
        segment.rates,
        train,
        name=segment.kind,
        remat=self.remat,
        scan=self.scan and first == 0,
        first=first,
      )
      x = x.reshape(shape)
      for i, aux in enumerate(auxes, start=first):
        out[f'{segment.kind}_{i:02d}'] = aux['tokens']
        maps[segment.kind].append(aux.get('attention'))
      counts[segment.kind] += len(auxes)

    batch, *grid, width = x.shape
    x = x.reshape(batch, math.prod(grid), width)
    if self.post_layers:
      cls = self.param('cls', normal02, (1, 1, width)).astype(dtype)
      x = jnp.concatenate([jnp.broadcast_to(cls, (batch, 1, width)), x], axis=1)
    for i in range(len(self.post_layers)):
      x, aux = block(
        kind='cls_block',
        num_heads=self.num_heads[-1],
        mlp_dim=int(width * self.mlp_ratios[-1]),
        name=f'cls_block_{i}',
      )(x, 0.0, train)
      out[f'cls_block_{i:02d}'] = aux['tokens']
      maps['cls_block'].append(aux.get('attention'))
    if self.return_attention:
      out['attention'] = maps['block']
      out['attention_outlook'] = maps['outlooker']
      out['attention_cls'] = maps['cls_block']

    x = nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name='encoder_norm')(x)
    out['encoded'] = out['tokens'] = x
    pre_logits = jnp.mean(x, axis=1) if self.return_mean else x[:, 0]
    out['pre_logits'] = pre_logits
    if not self.num_classes:
      return pre_logits.astype(jnp.float32), out
    head = functools.partial(
      nn.Dense, self.num_classes, dtype=dtype, kernel_init=normal02
    )
    logits = head(name='head')(pre_logits).astype(jnp.float32)
    if self.return_dense:
      out['logits_class'] = logits
      aux = head(name='aux_head')(x[:, 1:]).astype(jnp.float32)
      if box is not None:
        aux = swap_box(aux.reshape(batch, *grid, -1), box).reshape(aux.shape)
        out['mix_box'] = box
      if not train:
        logits = logits + 0.5 * jnp.max(aux, axis=1)
      out['logits_aux'] = aux
    return logits, out

  def _check(self):
    groups = len(self.layers)
    for field in (
      'embed_dims',
      'num_heads',
      'mlp_ratios',
      'outlook_attention',
      'downsamples',
    ):
      if len(getattr(self, field)) != groups:
        raise ValueError(
          f'{field}={getattr(self, field)} needs one entry per '
          f'group of layers={self.layers}'
        )
    if self.patch_size not in (4, 8, 16):
      raise ValueError(f'patch_size {self.patch_size}; allowed: 4, 8, 16')
    if self.downsamples[-1]:
      raise ValueError(
        f'downsamples={self.downsamples}: no group follows the '
        'last; its entry must be False'
      )
    if any(kind != 'ca' for kind in self.post_layers):
      raise ValueError(f"post_layers={self.post_layers}; allowed: 'ca'")
    if self.return_dense and self.return_mean:
      raise ValueError(
        'return_dense and return_mean exclude each other: '
        'set return_dense=False'
      )
    if not self.post_layers and not self.return_mean:
      raise ValueError(
        'without post_layers there is no class token: set '
        'return_mean=True, return_dense=False'
      )


# Test crops of the authors; for D4 and D5 the image is padded (ratio above 1).
_RELEASED = {
  'd1': ('224_84.2', '384_85.2'),
  'd2': ('224_85.2', '384_86.0'),
  'd3': ('224_85.4', '448_86.3'),
  'd4': ('224_85.7', '448_86.79'),
  'd5': ('224_86.10', '448_87.0', '512_87.07'),
}
for _size, (_layers, _widths, _heads, _ratio, _stem) in SIZES.items():
  register(
    f'volo_{_size}',
    VOLO,
    preprocessing=Preprocessing(
      crop=1.15 if _size in ('d4', 'd5') else 0.96,
      interpolation='bicubic',
      normalize='imagenet',
    ),
    released=tuple(
      name
      for file in _RELEASED[_size]
      for name in (
        f'{_size}_{file}.pth.tar',
        f'volo_{_size}_{file.split("_")[0]}.sail_in1k',
      )
    ),
    layers=_layers,
    embed_dims=(_widths[0],) + (_widths[1],) * 3,
    num_heads=(_heads[0],) + (_heads[1],) * 3,
    mlp_ratios=(_ratio,) * 4,
    stem_hidden_dim=_stem,
  )
