"""BiT: Big Transfer (arXiv:1912.11370).

A ResNet-V2: bottleneck units with f, f and 4f channels, and a norm and ReLU
before each convolution. GroupNorm (epsilon 1e-5) replaces BatchNorm, and
kernels are standardized: divided by sqrt(var + 1e-10). Padding is symmetric.
The root's max-pool pads with zeros, which differs from padding with -inf
because its input has negative values.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import max_pool_3x3
from vit_jax.models.group_norm import GroupNorm
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.max_pool import max_pool
from vit_jax.models.registry import register
from vit_jax.models.std_conv import (
  GROUPS,
  StdConv,
  check_groups,
  run_stages,
)

# name: (units per stage, width factor).
SIZES = {
  '50x1': ((3, 4, 6, 3), 1),
  '50x3': ((3, 4, 6, 3), 3),
  '101x1': ((3, 4, 23, 3), 1),
  '101x3': ((3, 4, 23, 3), 3),
  '152x2': ((3, 8, 36, 3), 2),
  '152x4': ((3, 8, 36, 3), 4),
}


class UnitV2(nn.Module):
  """Bottleneck unit with a norm and ReLU before each convolution.

  Attributes:
    features: f, the channels of the first two convolutions.
    stride: stride of the 3x3 convolution.
    num_groups: groups of GroupNorm.
    std_eps: added to the variance of kernels.
    gn_eps: added to the variance in GroupNorm.
    dtype: dtype of the activations.
  """

  features: int
  stride: int = 1
  num_groups: int = GROUPS
  std_eps: float = 1e-10
  gn_eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, 4 * features)."""
    conv = functools.partial(
      StdConv,
      padding='VALID',
      eps=self.std_eps,
      eps_inside=True,
      dtype=self.dtype,
    )
    norm = functools.partial(
      GroupNorm, self.num_groups, epsilon=self.gn_eps, dtype=self.dtype
    )
    width = 4 * self.features
    y = nn.relu(norm(name='gn1')(x))
    shortcut = x
    if x.shape[-1] != width or self.stride != 1:
      shortcut = conv(width, stride=self.stride, name='conv_proj')(y)
    y = nn.relu(norm(name='gn2')(conv(self.features, name='conv1')(y)))
    y = conv(
      self.features,
      size=3,
      stride=self.stride,
      padding=((1, 1), (1, 1)),
      name='conv2',
    )(y)
    y = conv(width, name='conv3')(nn.relu(norm(name='gn3')(y)))
    return shortcut + y


class RootV2(nn.Module):
  """A 7x7 convolution and a 3x3 max-pool, both of stride 2, without a norm."""

  features: int
  pool_padding: str = 'zero'
  std_eps: float = 1e-10
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> (B, H / 4, W / 4, features)."""
    check_field('pool_padding', self.pool_padding, ('zero', '-inf'))
    x = StdConv(
      self.features,
      size=7,
      stride=2,
      padding=((3, 3), (3, 3)),
      eps=self.std_eps,
      eps_inside=True,
      dtype=self.dtype,
      name='conv_root',
    )(x)
    if self.pool_padding == '-inf':
      return max_pool_3x3(x)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return max_pool(x, (3, 3), (2, 2))


class BiT(nn.Module):
  """Big Transfer's ResNet-V2 (arXiv:1912.11370, section 3.1).

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    num_layers: units per stage.
    width_factor: the root has 64 * width_factor channels, and the stages have
      256, 512, 1024, ... times width_factor.
    root_channels: number of channels of the root, instead of the above.
    channels: numbers of channels of the stages, instead of the above; multiples
      of 4.
    num_groups: number of groups of GroupNorm; it divides the root's channels
      and a quarter of each stage's channels.
    head_bias: initial bias of the head; -10 or -6.9 with a sigmoid loss.
    std_eps: added to the variance of kernels; 1e-8 in timm.
    gn_eps: added to the variance in GroupNorm.
    pool_padding: what surrounds the map in the root's max-pool: 'zero', as for
      the released weights, or '-inf', as in big_vision.
    dtype: dtype of the activations; from the last norm on they are float32.
    remat: key of `blocks.REMAT`.
  """

  num_classes: int = 1000
  num_layers: Sequence[int] = (3, 4, 6, 3)
  width_factor: float = 1
  root_channels: int | None = None
  channels: Sequence[int] | None = None
  num_groups: int = GROUPS
  head_bias: float = 0.0
  std_eps: float = 1e-10
  gn_eps: float = 1e-5
  pool_padding: str = 'zero'
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, H, W, 3), normalized.
      train: not used: the model has neither dropout nor batch statistics.

    Returns:
      logits (B, num_classes), float32, and intermediates: 'root', 'block{s}',
      'block{s}/unit{uu}', 'norm_pre_head' (B, H / 32, W / 32, C),
      'pre_logits_2d', which is its ReLU, and the mean 'pre_logits' (B, C).

    Raises:
      ValueError: the groups do not divide a width, a stage has no unit, or
        `pool_padding` or `remat` is unknown.
    """
    del train
    root_width, features = self._widths()
    root = RootV2(
      root_width, self.pool_padding, self.std_eps, self.dtype, name='root_block'
    )(images)
    x, out = run_stages(
      root,
      UnitV2,
      'unit{:02d}',
      self.num_layers,
      features,
      self.remat,
      num_groups=self.num_groups,
      std_eps=self.std_eps,
      gn_eps=self.gn_eps,
      dtype=self.dtype,
    )
    x = GroupNorm(
      self.num_groups,
      epsilon=self.gn_eps,
      dtype=jnp.float32,
      name='norm-pre-head',
    )(x)
    out = {'root': root, **out, 'norm_pre_head': x}
    x = out['pre_logits_2d'] = nn.relu(x)
    x = out['pre_logits'] = global_mean(x)
    return classify(x, self.num_classes, bias=self.head_bias), out

  def _widths(self) -> tuple[int, list[int]]:
    """The root's channels, and f of each stage, a quarter of its channels."""
    root = int(64 * self.width_factor)
    features = [root * 2**i for i in range(len(self.num_layers))]
    if self.channels is not None:
      if any(width % 4 for width in self.channels):
        raise ValueError(
          f'channels={tuple(self.channels)}: the convolutions inside a unit '
          'have a quarter of its channels; allowed: multiples of 4'
        )
      features = [width // 4 for width in self.channels]
    root = root if self.root_channels is None else self.root_channels
    check_groups(root, self.num_groups)
    return root, features


for _size, (_units, _width) in SIZES.items():
  register(
    f'bit_r{_size}',
    BiT,
    num_layers=_units,
    width_factor=_width,
    released=(
      f'BiT-S-R{_size}.npz',
      f'BiT-M-R{_size}.npz',
      f'BiT-M-R{_size}-ILSVRC2012.npz',
      f'resnetv2_{_size}_bit',
    ),
  )
