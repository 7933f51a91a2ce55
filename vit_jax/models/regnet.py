"""RegNetY: Designing Network Design Spaces (arXiv:2003.13678).

A residual network whose widths follow a line: the width of block i is
w0 + wa * i, rounded to w0 times a power of wm. Blocks of equal width are a
stage, and each stage begins with stride 2. A block has a 1x1 convolution, a
grouped 3x3 convolution, squeeze-and-excitation (the Y in the name) and a 1x1
convolution, all with the width of the stage. RegNetY-16GF is the teacher of
DeiT.

B batch, (H, W) image, C channels.
"""

import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import (
  ConvLayers,
  SqueezeExcite,
  run_stages,
)
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing

# name: (w0, wa, wm, depth, channels of a group). Table 7 of the paper.
SIZES = {
  '040': (96, 31.41, 2.24, 22, 64),
  '080': (192, 76.82, 2.19, 17, 56),
  '160': (200, 106.23, 2.48, 18, 112),
  '320': (232, 115.89, 2.53, 20, 232),
}
# How the width of a stage is rounded to a multiple of its group width. 'pycls'
# takes the nearest multiple; 'torchvision' takes the next larger one where the
# nearest is more than 10 % below. Of torchvision's sizes, only 8GF differs.
ROUNDINGS = ('pycls', 'torchvision')


class StageShape(NamedTuple):
  """Width of a stage, number of its blocks, and channels of a group."""

  width: int
  depth: int
  group_size: int


def stage_shapes(
  w0: int,
  wa: float,
  wm: float,
  depth: int,
  group_size: int,
  rounding: str = 'pycls',
) -> list[StageShape]:
  """The stages of a network (section 3.3 and eq. 2 to 4).

  Args:
    w0: width of the first block, before rounding.
    wa: increase of the width per block, before rounding.
    wm: ratio of consecutive widths.
    depth: number of blocks.
    group_size: channels of a group of the 3x3 convolutions.
    rounding: one of ROUNDINGS.

  Raises:
    ValueError: unknown `rounding`.
  """
  check_field('width_rounding', rounding, ROUNDINGS)
  widths = []
  for i in range(depth):
    exponent = round(math.log((w0 + wa * i) / w0) / math.log(wm))
    widths.append(8 * round(w0 * wm**exponent / 8))
  stages = []
  for width in sorted(set(widths)):
    group = min(group_size, width)
    rounded = max(group, group * round(width / group))
    if rounding == 'torchvision' and rounded < 0.9 * width:
      rounded += group
    stages.append(StageShape(rounded, widths.count(width), group))
  return stages


class Block(nn.Module):
  """ReLU(shortcut + 1x1, grouped 3x3, squeeze-and-excitation, 1x1).

  Attributes:
    shape: width and group size of the block's stage.
    layers: makes the layers.
    se_ratio: hidden width of the squeeze-and-excitation, relative to the
      channels of the block's input.
    stride: stride of the block.
    zero_init: whether the last scale is initially 0, so that the block is the
      ReLU of its shortcut.
  """

  shape: StageShape
  layers: ConvLayers
  se_ratio: float = 0.25
  stride: int = 1
  zero_init: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H / stride, W / stride, C'), {'se_gate': (B, C')}."""
    conv, norm = self.layers.conv, self.layers.norm
    width, _, group_size = self.shape
    shortcut = self.layers.shortcut(x, width, self.stride, train)
    y = nn.relu(norm(conv(x, width, 1, name='conv1'), train, name='norm1'))
    y = conv(
      y,
      width,
      3,
      stride=self.stride,
      groups=width // group_size,
      name='conv2',
    )
    y = nn.relu(norm(y, train, name='norm2'))
    y, gate = SqueezeExcite(
      round(self.se_ratio * x.shape[-1]),
      nn.relu,
      self.layers.dtype,
      name='se',
    )(y)
    last_scale = nn.initializers.zeros if self.zero_init else None
    y = norm(
      conv(y, width, 1, name='conv3'),
      train,
      name='norm3',
      scale_init=last_scale or nn.initializers.ones,
    )
    y = nn.relu(shortcut + DropPath()(y, rate, train))
    return y, {'se_gate': gate}


class RegNetY(nn.Module):
  """RegNet with squeeze-and-excitation.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    w0, wa, wm, depth, group_size: see `stage_shapes`.
    width_rounding: one of ROUNDINGS.
    stem_width: channels of the stem.
    se_ratio: see `Block`.
    zero_init: see `Block`; True in timm, False in torchvision and pycls.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    dropout: rate before the head.
    drop_path: rate of the last block; linear from 0 at the first.
    dtype: dtype of the activations; the head is float32.
    remat: key of `blocks.REMAT`.
  """

  num_classes: int = 1000
  w0: int = 200
  wa: float = 106.23
  wm: float = 2.48
  depth: int = 18
  group_size: int = 112
  width_rounding: str = 'pycls'
  stem_width: int = 32
  se_ratio: float = 0.25
  zero_init: bool = True
  bn_groups: int = 1
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, H, W, 3), normalized.
      train: turns drop path on (rng stream 'dropout'), and BatchNorm to the
        batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32, and intermediates: 'stem' (B, H / 2,
      W / 2, C), 'block{s}', 'block{s}/unit{u}' and 'block{s}/unit{u}/se_gate'
      (B, C), 'pre_logits_2d' (B, H / 32, W / 32, C), 'pre_logits' (B, C). Odd
      sizes are rounded up.

    Raises:
      ValueError: unknown `width_rounding` or `remat`.
    """
    layers = ConvLayers(jnp.dtype(self.dtype), self.bn_groups)
    shapes = stage_shapes(
      self.w0,
      self.wa,
      self.wm,
      self.depth,
      self.group_size,
      self.width_rounding,
    )
    x = layers.conv(images, self.stem_width, 3, stride=2, name='conv_root')
    x = nn.relu(layers.norm(x, train, name='norm_root'))
    out: dict[str, Any] = {'stem': x}
    stages = [
      [
        functools.partial(
          Block,
          shape=shape,
          layers=layers,
          se_ratio=self.se_ratio,
          stride=1 if i else 2,
          zero_init=self.zero_init,
        )
        for i in range(shape.depth)
      ]
      for shape in shapes
    ]
    rates = drop_path_rates(self.drop_path, self.depth)
    x = run_stages(x, stages, rates, train, self.remat, out)
    out['pre_logits_2d'] = x
    x = out['pre_logits'] = global_mean(x)
    x = Dropout(self.dropout, deterministic=not train)(x)
    kernel_init = nn.initializers.normal(0.01)
    return classify(x, self.num_classes, kernel_init=kernel_init), out


def _register(name: str, size: str, released: tuple[str, ...], **fields: Any):
  deit = size == '160'
  w0, wa, wm, depth, group_size = SIZES[size]
  register(
    name,
    RegNetY,
    preprocessing=Preprocessing(
      crop=0.95 if deit else 0.875,
      interpolation='bicubic',
      normalize='imagenet',
    ),
    released=released,
    role='teacher' if deit else 'comparator',
    w0=w0,
    wa=wa,
    wm=wm,
    depth=depth,
    group_size=group_size,
    **fields,
  )


for _size in SIZES:
  _released = (f'regnety_{_size}.pycls_in1k',)
  if _size == '160':  # the teacher of DeiT, trained with DeiT's recipe
    _released = ('regnety_160-a5fe301d.pth', 'regnety_160.deit_in1k')
  _register(f'regnety_{_size}', _size, _released)
_register(
  'regnety_080_tv',
  '080',
  ('regnety_080_tv.tv2_in1k',),
  width_rounding='torchvision',
)
