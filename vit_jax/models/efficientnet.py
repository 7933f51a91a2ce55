"""EfficientNet: Rethinking Model Scaling (arXiv:1905.11946).

A network of inverted residual blocks (MBConv). A block has a 1x1 convolution
that expands the channels, a depth-wise convolution, squeeze-and-excitation, and
a 1x1 convolution to fewer channels. The sizes scale the numbers of channels and
of blocks together. L2 is the network of Noisy Student (arXiv:1911.04252).

There are two forms with the same tensors, so a file does not say which form it
is for. `tf_efficientnet_*` is for the weights of the authors, with TensorFlow's
padding and a BatchNorm epsilon of 1e-3; `efficientnet_*` is for weights trained
in PyTorch, with symmetric padding and an epsilon of 1e-5. EfficientNets are
here as teachers and to be compared with transformers.

B batch, (H, W) image, C channels.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import (
  PADDINGS,
  ConvLayers,
  SqueezeExcite,
  fan_out_normal,
  run_stages,
)
from vit_jax.models.depthwise import DepthwiseConv
from vit_jax.models.dropout import Dropout, DropPath
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.initializers import symmetric_uniform
from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing

# Table 1: repeats, kernel, stride, expansion, channels of each stage of B0.
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
# name: (width, depth, image size, dropout, test crop).
SIZES = {
  'b0': (1.0, 1.0, 224, 0.2, 0.875),
  'b1': (1.0, 1.1, 240, 0.2, 0.882),
  'b2': (1.1, 1.2, 260, 0.3, 0.890),
  'b3': (1.2, 1.4, 300, 0.3, 0.904),
  'b4': (1.4, 1.8, 380, 0.4, 0.922),
  'b5': (1.6, 2.2, 456, 0.4, 0.934),
  'b6': (1.8, 2.6, 528, 0.5, 0.942),
  'b7': (2.0, 3.1, 600, 0.5, 0.949),
  'b8': (2.2, 3.6, 672, 0.5, 0.954),
  'l2': (4.3, 5.3, 800, 0.5, 0.96),
}


def scale_width(channels: float, multiplier: float) -> int:
  """A scaled number of channels, rounded to a multiple of 8.

  It is the nearest multiple, or the next larger one if the nearest is more than
  10 % below the scaled number.
  """
  value = channels * multiplier
  rounded = max(8, int(value + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * value else rounded


class MBConv(nn.Module):
  """Inverted residual block with squeeze-and-excitation.

  Attributes:
    features: channels of the result.
    expansion: factor on the channels of the depth-wise convolution; with 1
      there is no expanding convolution.
    size: side of the depth-wise kernel.
    layers: makes the layers.
    stride: stride of the block.
  """

  features: int
  expansion: int
  size: int
  layers: ConvLayers
  stride: int = 1

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H', W', features), {'se_gate': (B, expanded)}."""
    layers, channels = self.layers, x.shape[-1]
    y = x
    if self.expansion != 1:
      y = layers.conv(y, self.expansion * channels, 1, name='expand')
      y = nn.silu(layers.norm(y, train, name='norm_expand'))
    y = DepthwiseConv(
      self.size,
      self.stride,
      layers.explicit_padding(y.shape[1:3], self.size, self.stride),
      use_bias=False,
      dtype=layers.dtype,
      kernel_init=fan_out_normal(y.shape[-1]),
      name='depthwise',
    )(y)
    y = nn.silu(layers.norm(y, train, name='norm_depthwise'))
    hidden = max(1, int(0.25 * channels))
    y, gate = SqueezeExcite(hidden, nn.silu, layers.dtype, name='se')(y)
    y = layers.conv(y, self.features, 1, name='project')
    y = layers.norm(y, train, name='norm_project')
    if self.stride == 1 and channels == self.features:
      y = x + DropPath()(y, rate, train)
    return y, {'se_gate': gate}


class EfficientNet(nn.Module):
  """EfficientNet.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    width_multiplier: factor on all numbers of channels.
    depth_multiplier: factor on the numbers of blocks, rounded up.
    stages: (repeats, kernel, stride, expansion, channels) before scaling.
    stem_channels, head_channels: before scaling.
    padding: one of `convnet.PADDINGS`.
    bn_epsilon: added to the variance in BatchNorm.
    bn_momentum: weight of the old running statistics in an update; 0.99 in the
      authors' code.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    dropout: rate before the head; SIZES has the authors' rates.
    drop_path: the rate of block i of N is drop_path * i / N, with i from 0; 0.2
      in the authors' code.
    dtype: dtype of the activations; the head is float32.
    remat: key of `blocks.REMAT`.
  """

  num_classes: int = 1000
  width_multiplier: float = 1.0
  depth_multiplier: float = 1.0
  stages: Sequence[tuple[int, int, int, int, int]] = STAGES
  stem_channels: int = 32
  head_channels: int = 1280
  padding: str = 'tf_same'
  bn_epsilon: float = 1e-3
  bn_momentum: float = 0.99
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
      train: turns dropout and drop path on (rng stream 'dropout'), and
        BatchNorm to the batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32, and intermediates: 'stem' (B, H / 2,
      W / 2, C), 'block{s}', 'block{s}/unit{u}' and 'block{s}/unit{u}/se_gate'
      (B, C), 'pre_logits_2d' (B, H / 32, W / 32, C), 'pre_logits' (B, C). Odd
      sizes are rounded up.

    Raises:
      ValueError: unknown `padding` or `remat`.
    """
    check_field('padding', self.padding, PADDINGS)
    layers = ConvLayers(
      jnp.dtype(self.dtype),
      self.bn_groups,
      self.bn_epsilon,
      self.bn_momentum,
      self.padding,
    )
    scaled = functools.partial(scale_width, multiplier=self.width_multiplier)
    x = layers.conv(
      images, scaled(self.stem_channels), 3, stride=2, name='conv_root'
    )
    x = nn.silu(layers.norm(x, train, name='norm_root'))
    out: dict[str, Any] = {'stem': x}
    stages = [
      [
        functools.partial(
          MBConv,
          features=scaled(channels),
          expansion=expansion,
          size=size,
          layers=layers,
          stride=1 if i else stride,
        )
        for i in range(math.ceil(self.depth_multiplier * repeats))
      ]
      for repeats, size, stride, expansion, channels in self.stages
    ]
    total = sum(map(len, stages))
    rates = [self.drop_path * i / total for i in range(total)]
    x = run_stages(x, stages, rates, train, self.remat, out)
    x = layers.conv(x, scaled(self.head_channels), 1, name='conv_head')
    x = nn.silu(layers.norm(x, train, name='norm_head'))
    out['pre_logits_2d'] = x
    x = out['pre_logits'] = global_mean(x)
    x = Dropout(self.dropout, deterministic=not train)(x)
    uniform = symmetric_uniform(max(1, self.num_classes) ** -0.5)
    return classify(x, self.num_classes, kernel_init=uniform), out


for _size, (_width, _depth, _image, _dropout, _crop) in SIZES.items():
  _preprocessing = Preprocessing(
    (_image, _image),
    crop=_crop,
    interpolation='bicubic',
    normalize='imagenet',
  )
  _fields = dict(width_multiplier=_width, depth_multiplier=_depth)
  if _size == 'l2':
    _released = ('tf_efficientnet_l2.ns_jft_in1k',)
  elif _size == 'b8':
    _released = ('tf_efficientnet_b8.ra_in1k',)
  else:
    _released = (
      f'tf_efficientnet_{_size}.ns_jft_in1k',
      f'tf_efficientnet_{_size}.aa_in1k',
    )
  register(
    f'tf_efficientnet_{_size}',
    EfficientNet,
    preprocessing=_preprocessing,
    released=_released,
    role='teacher' if _size == 'l2' else 'comparator',
    **_fields,
  )
  register(
    f'efficientnet_{_size}',
    EfficientNet,
    preprocessing=_preprocessing,
    released=('efficientnet_b0.ra_in1k',) if _size == 'b0' else (),
    role='comparator',
    padding='symmetric',
    bn_epsilon=1e-5,
    bn_momentum=0.9,
    **_fields,
  )
