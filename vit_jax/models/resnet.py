"""ResNet: Deep Residual Learning for Image Recognition (arXiv:1512.03385).

The default form is that of torchvision and timm ('v1.5'), for which there are
released weights: the 3x3 convolution of a bottleneck has the stride. In the
paper its first 1x1 convolution has it (`stride_on_first`); the tensors are the
same, so a file does not say which form it is for. ResNets are here as teachers
and to be compared with transformers.

B batch, (H, W) image, C channels.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import (
  ConvLayers,
  max_pool_3x3,
  run_stages,
)
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel
from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing

# name: (units per stage, unit). Table 1.
SIZES = {
  '18': ((2, 2, 2, 2), 'basic'),
  '34': ((3, 4, 6, 3), 'basic'),
  '50': ((3, 4, 6, 3), 'bottleneck'),
  '101': ((3, 4, 23, 3), 'bottleneck'),
  '152': ((3, 8, 36, 3), 'bottleneck'),
}
UNITS = ('basic', 'bottleneck')


class Unit(nn.Module):
  """ReLU(shortcut + convolutions), with BatchNorm after each convolution.

  Attributes:
    kind: 'basic' (3x3, 3x3) or 'bottleneck' (1x1, 3x3, 1x1 to four times the
      channels).
    features: channels of the convolutions.
    layers: makes the layers.
    stride: stride of the unit.
    stride_on_first: whether the first 1x1 convolution of a bottleneck has the
      stride, as in the paper, and not the 3x3 one.
    zero_init: whether the last scale is initially 0, so that the unit is the
      ReLU of its shortcut.
  """

  kind: str
  features: int
  layers: ConvLayers
  stride: int = 1
  stride_on_first: bool = False
  zero_init: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H / stride, W / stride, C'), no intermediates."""
    conv, norm = self.layers.conv, self.layers.norm
    f, stride = self.features, self.stride
    plan = [(f, 3, stride), (f, 3, 1)]  # channels, size, stride
    if self.kind == 'bottleneck':
      first, second = (stride, 1) if self.stride_on_first else (1, stride)
      plan = [(f, 1, first), (f, 3, second), (4 * f, 1, 1)]
    width = plan[-1][0]
    shortcut = self.layers.shortcut(x, width, stride, train)
    last_scale = nn.initializers.ones
    if self.zero_init:
      last_scale = nn.initializers.zeros
    y = x
    for i, (channels, size, step) in enumerate(plan, start=1):
      y = conv(y, channels, size, stride=step, name=f'conv{i}')
      if i < len(plan):
        y = nn.relu(norm(y, train, name=f'norm{i}'))
      else:
        y = norm(y, train, name=f'norm{i}', scale_init=last_scale)
    return nn.relu(shortcut + DropPath()(y, rate, train)), {}


class ResNet(nn.Module):
  """Residual network.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    num_layers: units per stage.
    unit: one of UNITS.
    width: channels of the stem. The convolutions in the units of the stages
      have width, 2 * width, 4 * width, ... channels.
    stride_on_first: see `Unit`.
    zero_init: see `Unit`; True in timm, False in torchvision.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    dropout: rate before the head.
    drop_path: rate of the last unit; linear from 0 at the first.
    dtype: dtype of the activations; the head is float32.
    remat: key of `blocks.REMAT`.
  """

  num_classes: int = 1000
  num_layers: Sequence[int] = (3, 4, 6, 3)
  unit: str = 'bottleneck'
  width: int = 64
  stride_on_first: bool = False
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
      W / 2, C), 'stem_pool' (B, H / 4, W / 4, C), 'block{s}' and
      'block{s}/unit{u}', 'pre_logits_2d' (B, H / 32, W / 32, C), 'pre_logits'
      (B, C). Odd sizes are rounded up.

    Raises:
      ValueError: unknown `unit` or `remat`.
    """
    check_field('unit', self.unit, UNITS)
    layers = ConvLayers(jnp.dtype(self.dtype), self.bn_groups)
    x = layers.conv(images, self.width, 7, stride=2, name='conv_root')
    x = nn.relu(layers.norm(x, train, name='norm_root'))
    out: dict[str, Any] = {'stem': x}
    x = out['stem_pool'] = max_pool_3x3(x)
    stages = [
      [
        functools.partial(
          Unit,
          kind=self.unit,
          features=self.width * 2**s,
          layers=layers,
          stride=2 if s and not u else 1,
          stride_on_first=self.stride_on_first,
          zero_init=self.zero_init,
        )
        for u in range(units)
      ]
      for s, units in enumerate(self.num_layers)
    ]
    rates = drop_path_rates(self.drop_path, sum(self.num_layers))
    x = run_stages(x, stages, rates, train, self.remat, out)
    out['pre_logits_2d'] = x
    x = out['pre_logits'] = global_mean(x)
    x = Dropout(self.dropout, deterministic=not train)(x)
    logits = classify(
      x,
      self.num_classes,
      kernel_init=torch_conv_kernel,
      bias_init=torch_conv_bias(x.shape[-1]),
    )
    return logits, out


# The preprocessing of torchvision's first weights, trained for 90 epochs:
# resized to 256 px with bilinear interpolation, then the central 224 px.
for _size, (_units, _unit) in SIZES.items():
  register(
    f'resnet{_size}',
    ResNet,
    preprocessing=Preprocessing(
      crop=0.875, interpolation='bilinear_antialias', normalize='imagenet'
    ),
    released=(f'resnet{_size}.tv_in1k',),
    role='comparator',
    num_layers=_units,
    unit=_unit,
  )
