"""RegNetY: Designing Network Design Spaces (arXiv:2003.13678).

A simple residual network whose widths follow a line: block i would be
w0 + wa * i wide, rounded to w0 times a power of wm. Equal widths make a stage,
and each stage has stride 2. A block is 1x1, grouped 3x3, squeeze-and-excitation
(the Y), 1x1, all of the stage's width.
RegNetY-16GF is the teacher of DeiT. B batch, (H, W) image, C channels.
"""

import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import (
  ConvLayers,
  SqueezeExcite,
  global_mean,
  run_stages,
)
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.heads import classify
from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing

# name: (w0, wa, wm, depth, channels of a group). Table 7 of the paper.
SIZES = {
  '040': (96, 31.41, 2.24, 22, 64),
  '080': (192, 76.82, 2.19, 17, 56),
  '160': (200, 106.23, 2.48, 18, 112),
  '320': (232, 115.89, 2.53, 20, 232),
}
# How the width of a stage becomes a multiple of its group width: 'pycls' takes
# the nearest one, 'torchvision' the next larger one if the nearest is more than
# 10 % below. Of the sizes that torchvision has, this changes 8GF alone.
ROUNDINGS = ('pycls', 'torchvision')


class StageShape(NamedTuple):
  """Width of a stage, number of its blocks, channels of a group."""

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
    wa: slope of the width per block.
    wm: ratio of consecutive widths.
    depth: number of blocks.
    group_size: channels of a group.
    rounding: one of ROUNDINGS.
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
    shape: of the stage.
    layers: makes the layers.
    se_ratio: hidden width of the squeeze-and-excitation, relative to the
      channels of the block's input.
    stride: of the block.
    zero_init: the last scale starts at 0, so that the block is the identity.
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
    shortcut = x
    if x.shape[-1] != width or self.stride != 1:
      shortcut = conv(x, width, 1, stride=self.stride, name='conv_proj')
      shortcut = norm(shortcut, train, name='norm_proj')
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
    bn_groups: BatchNorm statistics per group of the batch; 1 is global.
    dropout: rate before the head.
    drop_path: rate of the last block; linear from 0 at the first.
    dtype: of the activations; the head is float32.
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
  dtype: Any = jnp.float32
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
    x = out['pre_logits'] = global_mean(x.astype(jnp.float32))
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
