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

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers


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
    w = self.param('kernel', nn.initializers.lecun_normal(),
                   (self.size, self.size, x.shape[-1], self.features))
    w = w - w.mean((0, 1, 2), keepdims=True)
    var = jnp.square(w).mean((0, 1, 2), keepdims=True)
    if self.eps_inside:
      w = w / jnp.sqrt(var + self.eps)
    else:
      w = w / (jnp.sqrt(var) + self.eps)
    return jax.lax.conv_general_dilated(
        x.astype(self.dtype), w.astype(self.dtype), (self.stride,) * 2,
        self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


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


class StageV1(nn.Module):
  """`unit1`, `unit2`, ...; the first one has the stride."""

  num_units: int
  features: int
  stride: int = 1
  dtype: Any = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(self, x):
    unit = rematerialised(UnitV1, self.remat)
    for i in range(self.num_units):
      x = unit(self.features, self.stride if i == 0 else 1, self.dtype,
               name=f'unit{i + 1}')(x)
      x = layers.pin(x)
    return x


def rematerialised(unit: type[nn.Module], remat: str) -> type[nn.Module]:
  """`unit` under a checkpoint policy of `layers.REMAT`."""
  if remat not in layers.REMAT:
    raise ValueError(f'remat={remat!r}; allowed: {", ".join(layers.REMAT)}')
  if remat == 'none':
    return unit
  return nn.remat(unit, policy=layers.REMAT[remat])


def hybrid_stem(x, num_layers: Sequence[int], width_factor: float, dtype,
                train: bool, remat: str = 'none'):
  """The ResNet in front of a hybrid ViT's patch convolution.

  Called inside the compact `__call__` of a module, so that `conv_root`,
  `gn_root` and `block{s}/unit{u}/...` become that module's own, as in the
  released files. The stem has stride 4, or 2^(stages + 1) with stages.

  Args:
    x: images (B, H, W, 3).
    num_layers: units per stage; () is the root alone.
    width_factor: the root has 64 * width_factor channels.
    dtype: of the activations.
    train: unused, the net has neither dropout nor batch statistics.
    remat: a key of `layers.REMAT`, applied to each unit.

  Returns:
    Features (B, H / s, W / s, C) and the named intermediates 'gn_root' (before
    ReLU and pooling) and 'block1', 'block2', ...
  """
  del train
  width = int(64 * width_factor)
  x = StdConv(width, size=7, stride=2, dtype=dtype, name='conv_root')(x)
  x = nn.GroupNorm(epsilon=1e-6, dtype=dtype, name='gn_root')(x)
  out = {'gn_root': x}
  x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding='SAME')
  for i, num_units in enumerate(num_layers):
    x = StageV1(num_units, width * 2 ** i, 1 if i == 0 else 2, dtype, remat,
                name=f'block{i + 1}')(x)
    out[f'block{i + 1}'] = x
  return x, out
