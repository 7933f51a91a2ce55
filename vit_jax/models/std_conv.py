"""Layers that BiT and the hybrid stems share: ResNets with GroupNorm.

Kernels are standardized at every call (arXiv:1903.10520), and GroupNorm
replaces BatchNorm, so that the result for an image does not depend on the other
images of its batch.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import REMAT, check_field
from vit_jax.models.fusion import apart
from vit_jax.models.products import convolution
from vit_jax.models.tpu_layout import constrain

GROUPS = 32  # number of groups of GroupNorm in all released models


class StdConv(nn.Module):
  """Convolution without a bias whose kernel is standardized at every call.

  For each output channel, mean, std and var of the kernel w are taken over
  (height, width, input channels), in float32. The kernel that is used is
  (w - mean) / (std + eps), or with `eps_inside` (w - mean) / sqrt(var + eps)
  (arXiv:1903.10520). std and var are the biased ones.

  Attributes:
    features: output channels.
    size: height and width of the kernel.
    stride: stride along both axes.
    padding: 'SAME', 'VALID', or zeros (before, after) for rows and columns.
    eps, eps_inside: see above.
    dtype: dtype of the convolution.
  """

  features: int
  size: int = 1
  stride: int = 1
  padding: str | Sequence[tuple[int, int]] = 'SAME'
  eps: float = 1e-5
  eps_inside: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H', W', features)."""
    w = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (self.size, self.size, x.shape[-1], self.features),
    )
    # The variance as a difference of means needs no copy of w without its mean,
    # which takes half of the time of this standardization on a CPU. The mean of
    # a kernel is small, so no digits are lost in the difference.
    axes = (0, 1, 2)
    # Apart, because metrics have the norm of all parameters: if both shared the
    # squares of w, the compiler would store them instead of adding them up.
    once, again, w = apart(w, 3)
    mean = once.mean(axes)
    var = jnp.maximum(jnp.square(again).mean(axes) - jnp.square(mean), 0.0)
    if self.eps_inside:
      inverse = 1 / jnp.sqrt(var + self.eps)
    else:
      inverse = 1 / (jnp.sqrt(var) + self.eps)
    # In the gradient, `broadcast` becomes one sum over three axes. The sum over
    # the third alone, of arrays whose first two axes have length 1, takes the
    # compiler for CPUs twenty times as long.
    mean, inverse = (
      jax.lax.broadcast(x, w.shape[:-1]) for x in (mean, inverse)
    )
    w = (w - mean) * inverse
    return convolution(
      x.astype(self.dtype),
      w.astype(self.dtype),
      (self.stride,) * 2,
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class Stage(nn.Module):
  """Units of one resolution; the first unit has the stride."""

  unit: Callable[..., nn.Module]  # called with (features, stride, name=...)
  unit_name: str  # format of a unit's name, with its number from 1
  num_units: int
  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H / stride, ...), and {unit name: its output}."""
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
  """Applies stages `block1`, `block2`, ..., the later ones at half the size.

  It is called inside a compact method.

  Args:
    x: (B, H, W, C).
    unit: Linen class of the units.
    unit_name: format of a unit's name, such as 'unit{:02d}'.
    num_layers: units of each stage.
    features: the field `features` of the units of each stage.
    remat: key of `blocks.REMAT`, applied to each unit.
    **fields: other fields of all units.

  Returns:
    The output of the last stage, and intermediates 'block{s}' and
    'block{s}/NAME OF UNIT'.

  Raises:
    ValueError: unknown `remat`, another number of features than of stages, a
      stage without units, or widths that GroupNorm cannot group.
  """
  check_field('remat', remat, tuple(REMAT))
  if len(features) != len(num_layers):
    raise ValueError(
      f'channels has {len(features)} widths for {len(num_layers)} stages, '
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
        f'num_layers={tuple(num_layers)}: a stage has at least one unit; leave '
        'the 0 out for a model with fewer stages'
      )
    block = f'block{i + 1}'
    x, units = Stage(
      make_unit, unit_name, num_units, width, 1 if i == 0 else 2, name=block
    )(x)
    out[block] = x
    out |= {f'{block}/{name}': y for name, y in units.items()}
  return x, out


def check_groups(channels: int, groups: int) -> None:
  """Raises ValueError if the channels cannot form that many equal groups."""
  if channels < groups or channels % groups:
    raise ValueError(
      f'{channels} channels cannot be split into the {groups} groups of '
      f'GroupNorm: choose a width (width_factor, channels, root_channels) that '
      f'gives multiples of {groups}, or another num_groups'
    )
