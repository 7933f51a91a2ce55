"""What the ResNets with standardized convolutions share: BiT, hybrid stems.

Kernels are standardized at every call (arXiv:1903.10520) and GroupNorm
replaces BatchNorm, so that a model does not depend on its batch.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.blocks import REMAT, check_field
from vit_jax.models.tpu_layout import constrain

GROUPS = 32  # of GroupNorm, in all released models


class StdConv(nn.Module):
  """Convolution without bias whose kernel is standardized at every call.

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
  def __call__(self, x: jax.Array) -> jax.Array:
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


class Stage(nn.Module):
  """Units of one resolution; only the first one has the stride."""

  unit: Callable[..., nn.Module]  # of (features, stride, name)
  unit_name: str  # format of the number from 1
  num_units: int
  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H / stride, ...) and {unit name: its output}."""
    out = {}
    for i in range(self.num_units):
      name = self.unit_name.format(i + 1)
      stride = self.stride if i == 0 else 1
      x = constrain(self.unit(self.features, stride, name=name)(x))
      out[name] = x
    return x, out


def run_stages(
  x: jax.Array,
  unit: type[nn.Module],
  unit_name: str,
  num_layers: Sequence[int],
  features: Sequence[int],
  remat: str,
  **fields: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Stages `block1`, `block2`, ..., each of half the size of the one before.

  `features` are f of each stage, and `fields` those of all units.
  """
  check_field('remat', remat, tuple(REMAT))
  if len(features) != len(num_layers):
    raise ValueError(
      f'{len(features)} stage widths for {len(num_layers)} stages of '
      f'num_layers={tuple(num_layers)}: give one width per stage'
    )
  for width in features:
    check_groups(width, fields['num_groups'])
  if remat != 'none':
    unit = nn.remat(unit, policy=REMAT[remat])
  make_unit = functools.partial(unit, **fields)
  out = {}
  for i, (num_units, width) in enumerate(
    zip(num_layers, features, strict=True)
  ):
    if num_units < 1:
      raise ValueError(
        f'num_layers={tuple(num_layers)}: every stage needs at '
        'least one unit; leave the stage out instead'
      )
    block = f'block{i + 1}'
    x, units = Stage(
      make_unit, unit_name, num_units, width, 1 if i == 0 else 2, name=block
    )(x)
    out[block] = x
    out |= {f'{block}/{name}': y for name, y in units.items()}
  return x, out


def check_groups(channels: int, groups: int) -> None:
  """ValueError if GroupNorm cannot have this many groups."""
  if channels < groups or channels % groups:
    raise ValueError(
      f'{channels} channels cannot be split into the {groups} groups of '
      f'GroupNorm: choose a width (width_factor, channels, root_channels) that '
      f'gives multiples of {groups}, or another num_groups'
    )


def global_mean(x: jax.Array) -> jax.Array:
  """Global mean (B, H, W, C) -> (B, C), in float32 as in big_vision."""
  return x.astype(jnp.float32).mean((1, 2))
