"""VOLO: Vision Outlooker for Visual Recognition (arXiv:2106.13112).

A convolutional stem makes a fine map (28x28 for 224 px). Outlooker blocks mix
it in overlapping 3x3 windows (`outlook`). A convolution with stride 2 halves
the map, transformer blocks follow, and class-attention blocks combine the
patches into a class token. An auxiliary head classifies every patch token. It
is trained on token labels (arXiv:2104.10858), while MixToken replaces a box of
the map by that of another image.
B batch, (H, W) map, (h, w) windows, N tokens, T = 1 + N, D width.
"""

import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import run_blocks
from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.dropout import DropPath
from vit_jax.models.fused.attend import attend_fn
from vit_jax.models.heads import classify
from vit_jax.models.initializers import TIMM, normal02
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mix_token import mix_box, swap_box
from vit_jax.models.mlp import timm_mlp
from vit_jax.models.outlook import OutlookAttention
from vit_jax.models.patches import embed_patches
from vit_jax.models.registry import register
from vit_jax.models.tokens import add_position_table, prepend_tokens
from vit_jax.models.tpu_layout import constrain
from vit_jax.preprocessing import Preprocessing

# name: (blocks per group, widths, heads, MLP ratio, channels of the stem).
SIZES = {
  'd1': ((4, 4, 8, 2), (192, 384), (6, 12), 3, 64),
  'd2': ((6, 4, 10, 4), (256, 512), (8, 16), 3, 64),
  'd3': ((8, 8, 16, 4), (256, 512), (8, 16), 3, 64),
  'd4': ((8, 8, 16, 4), (384, 768), (12, 16), 3, 64),
  'd5': ((12, 12, 20, 4), (384, 768), (12, 16), 4, 128),
}
EPSILON = 1e-5  # added to the variance in LayerNorm
STEM = ((7, 2), (3, 1), (3, 1))  # (size, stride) of the stem's convolutions


class Block(nn.Module):
  """x + attention(LN(x)), then x + MLP(LN(x)).

  The field `kind` is 'outlooker' for outlook attention on maps (B, H, W, D),
  'block' for self-attention on tokens (B, N, D), and 'cls_block' for class
  attention on (B, T, D), which changes only the class token.
  """

  kind: str
  num_heads: int
  mlp_dim: int
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  dtype: DTypeLike = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Applies the block to x, with drop-path rate `rate` in both branches.

    Returns:
      The shape of x; and 'tokens', the same array, and with `return_attention`
      'attention', the probabilities.
    """
    norm = functools.partial(LayerNorm, epsilon=EPSILON, dtype=self.dtype)
    rest = x[:, 1:] if self.kind == 'cls_block' else None
    y = query = norm()(x)
    if self.kind == 'outlooker':
      y, maps = OutlookAttention(
        self.num_heads,
        self.qkv_bias,
        self.attention_dropout,
        self.dtype,
        name='attn',
      )(y, train)
    else:
      if rest is not None:
        x, query = x[:, :1], y[:, :1]
      y, maps = MultiHeadDotProductAttention(
        self.num_heads,
        self.attention_dropout,
        self.qkv_bias,
        self.dtype,
        kernel_init=normal02,
        attend_fn=attend_fn(self.return_attention),
        name='attn',
      )(query, y, train)
    x = x + DropPath()(y, rate, train)
    mlp = timm_mlp(self.mlp_dim, self.dropout, self.activation, self.dtype)
    x = x + DropPath()(mlp(norm()(x), train), rate, train)
    if rest is not None:
      x = jnp.concatenate([x, rest], axis=1)
    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = maps
    return x, aux


class Segment(NamedTuple):
  """A run of equal blocks, or a convolution that halves the map."""

  kind: str  # 'outlooker', 'block' or 'downsample'
  width: int
  num_heads: int = 0
  mlp_dim: int = 0
  rates: tuple[float, ...] = ()  # drop-path rate of each block
  add_posemb: bool = False  # the position table is added before the segment


class VOLO(nn.Module):
  """Vision outlooker; see the module docstring.

  The blocks are in groups; fields that are tuples have one entry per group.
  """

  num_classes: int = 1000  # 0 for no heads: the logits are pre_logits
  patch_size: int = 8  # of the stem, in pixels; a token has twice the side
  layers: tuple[int, ...] = (4, 4, 8, 2)  # blocks per group
  embed_dims: tuple[int, ...] = (192, 384, 384, 384)
  num_heads: tuple[int, ...] = (6, 12, 12, 12)
  mlp_ratios: tuple[float, ...] = (3, 3, 3, 3)
  outlook_attention: tuple[bool, ...] = (True, False, False, False)
  downsamples: tuple[bool, ...] = (True, False, False, False)  # after the group
  post_layers: tuple[str, ...] = ('ca', 'ca')  # class-attention blocks
  stem_hidden_dim: int = 64
  qkv_bias: bool = False
  return_dense: bool = True  # adds the auxiliary head on every token
  return_mean: bool = False  # classifies the mean token; excludes return_dense
  mix_token: bool = True  # MixToken in training
  bn_groups: int = (
    1  # groups of the batch with BatchNorm statistics of their own
  )
  bn_unbiased: bool = True  # the running variances are unbiased, as in PyTorch
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # rate of the last block; outlookers have none
  activation: str = 'gelu_erf'
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False  # scans the first run of outlookers and of transformers
  return_attention: bool = False

  def plan(self) -> list[Segment]:
    """The segments from the stem to the class-attention blocks.

    Consecutive groups of equal blocks are one segment. Raises ValueError for
    fields that contradict each other.
    """
    self._check()
    total = max(1, sum(self.layers) - 1)
    plan: list[Segment] = []
    elements = 0  # groups and convolutions that halve the map, so far
    for g, count in enumerate(self.layers):
      width, heads = self.embed_dims[g], self.num_heads[g]
      mlp_dim = int(width * self.mlp_ratios[g])
      if self.outlook_attention[g]:
        kind, rates = 'outlooker', (0.0,) * count
      else:
        first = sum(self.layers[:g])
        kind = 'block'
        rates = tuple(
          self.drop_path * (first + j) / total for j in range(count)
        )
      # The released code counts groups and convolutions that halve the map, and
      # adds the position table before the third of them.
      new = Segment(kind, width, heads, mlp_dim, rates, elements == 2)
      elements += 1
      if plan and not new.add_posemb and plan[-1][:4] == new[:4]:
        plan[-1] = plan[-1]._replace(rates=plan[-1].rates + rates)
      else:
        plan.append(new)
      if self.downsamples[g]:
        width = self.embed_dims[g + 1]
        plan.append(Segment('downsample', width, add_posemb=elements == 2))
        elements += 1
    return plan

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns dropout, drop path and MixToken on (rng stream 'dropout'),
        and BatchNorm to the batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32. In training they are those of the class
      token; otherwise half of the maximum over the tokens of `logits_aux` is
      added. And a dict: stem, with_posemb, outlooker_00 ... and downsample
      (B, H, W, D), block_00 ... (B, N, D), cls_block_00 ... and encoded =
      tokens (B, T, D), pre_logits (B, D), logits_class (B, num_classes),
      logits_aux (B, N, num_classes), where tokens that MixToken exchanged are
      back in their own images. With MixToken also mix_box (row1, column1, row2,
      column2), on the grid of tokens. With `return_attention` also three lists
      with an array per block: attention (B, heads, N, N), attention_outlook
      (B, heads, windows, 9, 9), attention_cls (B, heads, 1, T).

    Raises:
      ValueError: fields contradict each other, num_heads does not divide a
        width, or no patch fits into the image.
    """
    plan, dtype = self.plan(), jnp.dtype(self.dtype)
    out = {}
    x = out['stem'] = ConvStem(
      self.embed_dims[0],
      self.patch_size,
      STEM,
      self.stem_hidden_dim,
      functools.partial(
        BatchNorm, groups=self.bn_groups, unbiased=self.bn_unbiased
      ),
      dtype,
      name='stem',
    )(images, train)
    scale = 2 ** sum(self.downsamples)
    box = None
    if train and self.mix_token and self.return_dense:
      box = mix_box(
        self.make_rng('dropout'), (x.shape[1] // scale, x.shape[2] // scale)
      )
      x = swap_box(x, box, scale)
      out['mix_box'] = box

    block = functools.partial(
      Block,
      qkv_bias=self.qkv_bias,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      activation=self.activation,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    x = self._run_network(plan, block, x, train, out)
    batch, *grid, width = x.shape
    x = x.reshape(batch, math.prod(grid), width)
    if self.post_layers:
      x = prepend_tokens(self, ['cls'], x, normal02)
    for i in range(len(self.post_layers)):
      x, aux = block(
        kind='cls_block',
        num_heads=self.num_heads[-1],
        mlp_dim=int(width * self.mlp_ratios[-1]),
        name=f'cls_block_{i}',
      )(x, 0.0, train)
      out[f'cls_block_{i:02d}'] = aux['tokens']
      if self.return_attention:
        out.setdefault('attention_cls', []).append(aux['attention'])

    x = LayerNorm(epsilon=EPSILON, dtype=dtype, name='encoder_norm')(x)
    out['encoded'] = out['tokens'] = x
    pre_logits = jnp.mean(x, axis=1) if self.return_mean else x[:, 0]
    out['pre_logits'] = pre_logits
    logits = classify(pre_logits, self.num_classes, kernel_init=normal02)
    if self.num_classes and self.return_dense:
      out['logits_class'] = logits
      aux = classify(
        x[:, 1:], self.num_classes, kernel_init=normal02, name='aux_head'
      )
      if box is not None:
        aux = swap_box(aux.reshape(batch, *grid, -1), box).reshape(aux.shape)
      if not train:
        logits = logits + 0.5 * jnp.max(aux, axis=1)
      out['logits_aux'] = aux
    return logits, out

  def _run_network(
    self,
    plan: list[Segment],
    block: functools.partial,
    x: jax.Array,
    train: bool,
    out: dict[str, Any],
  ) -> jax.Array:
    """Runs the segments on a map (B, H, W, D); adds intermediates to `out`."""
    counts = {'outlooker': 0, 'block': 0, 'downsample': 0}
    maps = {'outlooker': [], 'block': []}
    for segment in plan:
      kind, first = segment.kind, counts[segment.kind]
      if segment.add_posemb:
        x = out['with_posemb'] = add_position_table(
          self, x, normal02, dropout=self.dropout, train=train
        )
      x = constrain(x)
      if kind == 'downsample':
        name = f'downsample_{first}' if first else 'downsample'
        x = out[name] = embed_patches(
          x, segment.width, 2, init=TIMM, dtype=x.dtype, name=name
        )
        counts[kind] += 1
        continue
      shape = x.shape
      if kind == 'block':
        x = x.reshape(shape[0], math.prod(shape[1:3]), shape[3])
      x, auxes = run_blocks(
        functools.partial(
          block,
          kind=kind,
          num_heads=segment.num_heads,
          mlp_dim=segment.mlp_dim,
        ),
        x,
        segment.rates,
        train,
        name=kind,
        remat=self.remat,
        scan=self.scan and first == 0,
        first=first,
      )
      x = x.reshape(shape)
      for i, aux in enumerate(auxes, start=first):
        out[f'{kind}_{i:02d}'] = aux['tokens']
        maps[kind].append(aux.get('attention'))
      counts[kind] += len(auxes)
    if self.return_attention:
      out['attention'] = maps['block']
      out['attention_outlook'] = maps['outlooker']
    return x

  def _check(self) -> None:
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
          f'{field}={getattr(self, field)} needs one entry per group of '
          f'layers={self.layers}'
        )
    if self.patch_size not in (4, 8, 16):
      raise ValueError(f'patch_size {self.patch_size}; allowed: 4, 8, 16')
    if self.downsamples[-1]:
      raise ValueError(
        f'downsamples={self.downsamples}: no group follows the last; set False'
      )
    if any(kind != 'ca' for kind in self.post_layers):
      raise ValueError(f"post_layers={self.post_layers}; allowed: ('ca', ...)")
    if self.return_dense and self.return_mean:
      raise ValueError(
        'return_dense and return_mean exclude each other: set one to False'
      )
    if not self.post_layers and not self.return_mean:
      raise ValueError(
        'without post_layers there is no class token: set '
        'return_mean=True, return_dense=False'
      )


# Image size and top-1 accuracy in the names of the published files.
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
      # As in the authors' evaluation; a crop above 1 pads the image.
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
