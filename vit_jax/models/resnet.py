"""ResNets with standardised convolutions and GroupNorm: hybrid stems and BiT.

Two nets, both of bottleneck units (f, f, 4f channels) without any BatchNorm:

- V1, norm after each convolution: the stem of hybrid ViTs (arXiv:2010.11929,
  section 3.1) and, with a head, big_vision's `bit`. Weights are standardised
  by std + 1e-5, GroupNorm epsilon 1e-6, padding SAME.
- V2, norm and ReLU before each convolution: Big Transfer (BiT,
  arXiv:1912.11370). Weights are standardised by sqrt(var + 1e-10), GroupNorm
  epsilon 1e-5, explicit symmetric padding; the root's max-pool pads with
  zeros, which differs from -inf because no ReLU comes before it.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import tpu_layout
from vit_jax.models.blocks import REMAT
from vit_jax.models.registry import register


class StdConv(nn.Module):
  """Convolution without bias whose kernel is standardised at every call.

  Over (height, width, input) per output channel, in float32
  (arXiv:1903.10520): (w - mean) / (std + eps), or with `eps_inside`
  (w - mean) / sqrt(var + eps); std and var are biased.
  """

  features: int
  size: int = 1
  stride: int = 1
  padding: Any = 'SAME'
  eps: float = 1e-5
  eps_inside: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> (B, H', W', features)."""
    w = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (self.size, self.size, x.shape[-1], self.features),
    )
    w = w - w.mean((0, 1, 2), keepdims=True)
    var = jnp.square(w).mean((0, 1, 2), keepdims=True)
    if self.eps_inside:
      w = w / jnp.sqrt(var + self.eps)
    else:
      w = w / (jnp.sqrt(var) + self.eps)
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      w.astype(self.dtype),
      (self.stride,) * 2,
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class UnitV1(nn.Module):
  """Bottleneck with norm after each convolution; `gn3` starts at scale 0."""

  features: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> (B, H / stride, W / stride, 4 * features)."""
    conv = functools.partial(StdConv, dtype=self.dtype)
    norm = functools.partial(nn.GroupNorm, epsilon=1e-6, dtype=self.dtype)
    width = 4 * self.features
    shortcut = x
    if x.shape[-1] != width or self.stride != 1:
      shortcut = conv(width, stride=self.stride, name='conv_proj')(x)
      shortcut = norm(name='gn_proj')(shortcut)
    y = nn.relu(norm(name='gn1')(conv(self.features, name='conv1')(x)))
    y = conv(self.features, size=3, stride=self.stride, name='conv2')(y)
    y = nn.relu(norm(name='gn2')(y))
    y = conv(width, name='conv3')(y)
    y = norm(name='gn3', scale_init=nn.initializers.zeros)(y)
    return nn.relu(shortcut + y)


class UnitV2(nn.Module):
  """Bottleneck with norm and ReLU before each convolution."""

  features: int
  stride: int = 1
  std_eps: float = 1e-10
  gn_eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> (B, H / stride, W / stride, 4 * features)."""
    conv = functools.partial(
      StdConv,
      padding='VALID',
      eps=self.std_eps,
      eps_inside=True,
      dtype=self.dtype,
    )
    norm = functools.partial(
      nn.GroupNorm, epsilon=self.gn_eps, dtype=self.dtype
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


class Stage(nn.Module):
  """Units of one resolution; only the first one has the stride."""

  unit: Callable[..., nn.Module]  # of (features, stride, name)
  unit_name: str  # format of the number from 1
  num_units: int
  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    """(B, H, W, C) -> (B, H / stride, ...) and {unit name: its output}."""
    out = {}
    for i in range(self.num_units):
      name = self.unit_name.format(i + 1)
      stride = self.stride if i == 0 else 1
      x = tpu_layout.constrain(self.unit(self.features, stride, name=name)(x))
      out[name] = x
    return x, out


def _run_stages(
  x,
  unit: type[nn.Module],
  unit_name: str,
  num_layers: Sequence[int],
  width: int,
  remat: str,
  **fields,
):
  """Stages `block1`, `block2`, ...: twice the width, half the size each."""
  if remat not in REMAT:
    raise ValueError(f'remat={remat!r}; allowed: {", ".join(REMAT)}')
  if remat != 'none':
    unit = nn.remat(unit, policy=REMAT[remat])
  unit = functools.partial(unit, **fields)
  out = {}
  for i, num_units in enumerate(num_layers):
    if num_units < 1:
      raise ValueError(
        f'num_layers={tuple(num_layers)}: every stage needs at '
        'least one unit; leave the stage out instead'
      )
    block = f'block{i + 1}'
    x, units = Stage(
      unit, unit_name, num_units, width * 2**i, 1 if i == 0 else 2, name=block
    )(x)
    out[block] = x
    out |= {f'{block}/{name}': y for name, y in units.items()}
  return x, out


def _root_width(width_factor: float) -> int:
  width = int(64 * width_factor)
  if width < 32 or width % 32:
    raise ValueError(
      f'width_factor={width_factor} gives {width} root channels; GroupNorm '
      'has 32 groups, so 64 * width_factor must be a multiple of 32'
    )
  return width


def hybrid_stem(
  x, num_layers: Sequence[int], width_factor: float, dtype, remat: str = 'none'
):
  """The ResNet-V1 in front of a hybrid ViT's patch convolution.

  Called inside the compact `__call__` of a module, so that `conv_root`,
  `gn_root` and `block{s}/unit{u}/...` become that module's own, as in the
  released files. The root has stride 4, each stage after the first 2 more.

  Args:
    x: images (B, H, W, 3).
    num_layers: units per stage; () is the root alone.
    width_factor: the root has 64 * width_factor channels.
    dtype: of the activations.
    remat: a key of `layers.REMAT`, applied to each unit.

  Returns:
    Features (B, H / stride, W / stride, C) and named intermediates: 'gn_root'
    (before ReLU and pooling), 'root', 'block{s}', 'block{s}/unit{u}'.
  """
  width = _root_width(width_factor)
  x = StdConv(width, size=7, stride=2, dtype=dtype, name='conv_root')(x)
  gn_root = nn.GroupNorm(epsilon=1e-6, dtype=dtype, name='gn_root')(x)
  root = nn.max_pool(nn.relu(gn_root), (3, 3), (2, 2), padding='SAME')
  x, out = _run_stages(
    root, UnitV1, 'unit{}', num_layers, width, remat, dtype=dtype
  )
  return x, {'gn_root': gn_root, 'root': root, **out}


def _classify(x, out: dict, num_classes: int, head_bias: float, dtype):
  """Global mean and a zero-initialised `head`; called in a compact method."""
  out['pre_logits_2d'] = x
  x = out['pre_logits'] = x.mean((1, 2))
  if num_classes:
    x = nn.Dense(
      num_classes,
      dtype=dtype,
      name='head',
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(head_bias),
    )(x)
  return x.astype(jnp.float32), out


class BiTV1(nn.Module):
  """The hybrids' ResNet as a classifier (big_vision's `bit`; no paper)."""

  num_classes: int = 1000  # 0: no head, logits are pre_logits
  num_layers: Sequence[int] = (3, 4, 6, 3)  # units per stage
  width_factor: float = 1
  head_bias: float = 0.0  # initial; -10 or -6.9 with a sigmoid loss
  dtype: Any = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, *, train: bool):
    """Images (B, H, W, 3) -> logits (B, num_classes), intermediates.

    Intermediates: 'gn_root', 'root', 'block{s}', 'block{s}/unit{u}',
    'pre_logits_2d' (B, H / 32, W / 32, C), 'pre_logits' (B, C).
    """
    x, out = hybrid_stem(
      images, self.num_layers, self.width_factor, self.dtype, self.remat
    )
    return _classify(x, out, self.num_classes, self.head_bias, self.dtype)


class RootV2(nn.Module):
  """Convolution 7x7 and max-pool 3x3, both of stride 2, no norm, no ReLU."""

  features: int
  pool_padding: str = 'zero'
  std_eps: float = 1e-10
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, H, W, 3) -> (B, H / 4, W / 4, features)."""
    if self.pool_padding not in ('zero', '-inf'):
      raise ValueError(
        f"pool_padding={self.pool_padding!r}; allowed: 'zero' "
        "(released BiT weights), '-inf' (big_vision)"
      )
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
    ones = ((1, 1), (1, 1))
    if self.pool_padding == '-inf':
      return nn.max_pool(x, (3, 3), (2, 2), padding=ones)
    x = jnp.pad(x, ((0, 0), *ones, (0, 0)))
    return nn.max_pool(x, (3, 3), (2, 2))


class BiT(nn.Module):
  """Big Transfer's ResNet-V2 (arXiv:1912.11370, section 3.1).

  Raises ValueError for a width that 32 groups do not divide, an empty stage,
  and unknown values of `pool_padding` or `remat`.
  """

  num_classes: int = 1000  # 0: no head, logits are pre_logits
  num_layers: Sequence[int] = (3, 4, 6, 3)  # units per stage
  width_factor: float = 1
  head_bias: float = 0.0  # initial; -10 or -6.9 with a sigmoid loss
  std_eps: float = 1e-10  # inside the root; 1e-8 in timm
  gn_eps: float = 1e-5
  pool_padding: str = 'zero'  # '-inf' in big_vision
  dtype: Any = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(self, images, *, train: bool):
    """Images (B, H, W, 3) -> logits (B, num_classes), intermediates.

    Intermediates: 'root', 'block{s}', 'block{s}/unit{uu}', 'norm_pre_head'
    and after ReLU 'pre_logits_2d' (B, H / 32, W / 32, C), 'pre_logits' (B, C).
    """
    del train  # neither dropout nor batch statistics
    width = _root_width(self.width_factor)
    root = RootV2(
      width, self.pool_padding, self.std_eps, self.dtype, name='root_block'
    )(images)
    x, out = _run_stages(
      root,
      UnitV2,
      'unit{:02d}',
      self.num_layers,
      width,
      self.remat,
      std_eps=self.std_eps,
      gn_eps=self.gn_eps,
      dtype=self.dtype,
    )
    x = nn.GroupNorm(
      epsilon=self.gn_eps, dtype=self.dtype, name='norm-pre-head'
    )(x)
    out = {'root': root, **out, 'norm_pre_head': x}
    return _classify(
      nn.relu(x), out, self.num_classes, self.head_bias, self.dtype
    )


# Name: (units per stage, width factor).
_VARIANTS = {
  '50x1': ((3, 4, 6, 3), 1),
  '50x3': ((3, 4, 6, 3), 3),
  '101x1': ((3, 4, 23, 3), 1),
  '101x3': ((3, 4, 23, 3), 3),
  '152x2': ((3, 8, 36, 3), 2),
  '152x4': ((3, 8, 36, 3), 4),
}
for _size, (_units, _width) in _VARIANTS.items():
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
for _size in ('50x1', '101x1', '152x2'):
  _units, _width = _VARIANTS[_size]
  register(f'bit_v1_r{_size}', BiTV1, num_layers=_units, width_factor=_width)
