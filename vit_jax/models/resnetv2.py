"""ResNet-V2: Identity Mappings in Deep Residual Networks (arXiv:1603.05027).

What differs from ResNet: norm and ReLU come before each convolution, so that
nothing is applied to the sum of a unit, and one more norm comes before the head
(figure 1b). As in timm, whose weights it is for, the 3x3 convolution of a
bottleneck has the stride. 'D' variants (arXiv:1812.01187, section 4.2) have a
stem of three 3x3 convolutions and average the map before the convolution of a
shortcut. BiT, with GroupNorm and standardized kernels, is in `bit`.

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
from vit_jax.models.convnet import ConvLayers, max_pool_3x3, run_stages
from vit_jax.models.dropout import Dropout, DropPath, drop_path_rates
from vit_jax.models.group_norm import GroupNorm
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel

UNITS = ('basic', 'bottleneck')
NORMS = ('batch', 'group')
# Channels of the first two convolutions of a stem of three, in eighths of the
# last one's; '7x7' has one convolution.
STEMS = {'7x7': (), 'deep': (4, 4), 'tiered': (3, 4)}


def norm_relu(
  layers: ConvLayers, norm: str, x: jax.Array, train: bool, name: str
) -> jax.Array:
  """A norm, one of NORMS, and ReLU over (B, H, W, C), in a compact method."""
  if norm == 'batch':
    return nn.relu(layers.norm(x, train, name=name))
  group_norm = GroupNorm(
    32, epsilon=layers.epsilon, dtype=layers.dtype, name=name
  )
  return nn.relu(group_norm(x))


class Unit(nn.Module):
  """x + convolutions, with a norm and ReLU before each of them.

  The shortcut of a unit that changes the shape is a 1x1 convolution of the
  normalized input.

  Attributes:
    kind: 'basic' (3x3, 3x3) or 'bottleneck' (1x1, 3x3, 1x1 to four times the
      channels).
    features: channels of the convolutions.
    layers: makes the layers.
    norm: one of NORMS.
    stride: stride of the unit.
    average: whether a shortcut with a stride averages 2x2 entries.
  """

  kind: str
  features: int
  layers: ConvLayers
  norm: str = 'batch'
  stride: int = 1
  average: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H / stride, W / stride, C'), no intermediates."""
    conv = self.layers.conv
    f, stride = self.features, self.stride
    plan = [(f, 3, stride), (f, 3, 1)]  # channels, size, stride
    if self.kind == 'bottleneck':
      plan = [(f, 1, 1), (f, 3, stride), (4 * f, 1, 1)]
    width, shortcut, y = plan[-1][0], x, x
    for i, (channels, size, step) in enumerate(plan, start=1):
      y = norm_relu(self.layers, self.norm, y, train, f'norm{i}')
      if i == 1 and (x.shape[-1] != width or stride != 1):
        shortcut, step_of_shortcut = y, stride
        if self.average and stride != 1:
          shortcut, step_of_shortcut = self._averaged(y), 1
        shortcut = conv(
          shortcut, width, 1, stride=step_of_shortcut, name='conv_proj'
        )
      y = conv(y, channels, size, stride=step, name=f'conv{i}')
    return shortcut + DropPath()(y, rate, train), {}

  def _averaged(self, x: jax.Array) -> jax.Array:
    """Means of 2x2 entries, of fewer at an odd edge."""
    return nn.avg_pool(x, (2, 2), (2, 2), 'SAME', count_include_pad=False)


class ResNetV2(nn.Module):
  """Residual network with pre-activation.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    num_layers: units per stage.
    unit: one of UNITS.
    width: channels of the stem. The convolutions in the units of the stages
      have width, 2 * width, 4 * width, ... channels.
    stem: key of STEMS.
    average: see `Unit`.
    norm: one of NORMS.
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
  stem: str = '7x7'
  average: bool = False
  norm: str = 'batch'
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
      ValueError: unknown `unit`, `stem`, `norm` or `remat`.
    """
    check_field('unit', self.unit, UNITS)
    check_field('stem', self.stem, tuple(STEMS))
    check_field('norm', self.norm, NORMS)
    layers = ConvLayers(jnp.dtype(self.dtype), self.bn_groups)
    x = self._stem(images, layers, train)
    out: dict[str, Any] = {'stem': x}
    x = out['stem_pool'] = max_pool_3x3(x)
    stages = [
      [
        functools.partial(
          Unit,
          kind=self.unit,
          features=self.width * 2**s,
          layers=layers,
          norm=self.norm,
          stride=2 if s and not u else 1,
          average=self.average,
        )
        for u in range(units)
      ]
      for s, units in enumerate(self.num_layers)
    ]
    rates = drop_path_rates(self.drop_path, sum(self.num_layers))
    x = run_stages(x, stages, rates, train, self.remat, out)
    x = norm_relu(layers, self.norm, x, train, 'norm_head')
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

  def _stem(self, x: jax.Array, layers: ConvLayers, train: bool) -> jax.Array:
    """(B, H, W, 3) -> (B, H / 2, W / 2, width), without a norm at the end."""
    if self.stem == '7x7':
      return layers.conv(x, self.width, 7, stride=2, name='conv_root')
    for i, eighths in enumerate(STEMS[self.stem], start=1):
      channels = self.width * eighths // 8
      x = layers.conv(x, channels, 3, stride=3 - i, name=f'conv_root{i}')
      x = norm_relu(layers, self.norm, x, train, f'norm_root{i}')
    return layers.conv(x, self.width, 3, name='conv_root3')
