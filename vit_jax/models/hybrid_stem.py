"""The ResNet stem of hybrid ViTs (arXiv:2010.11929, section 3.1).

A ResNet-V1: bottleneck units with f, f and 4f channels, and a norm after each
convolution, and SAME padding. With a head it is big_vision's model `bit`, which
is not the published BiT, a ResNet-V2.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import check_field
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

# What is added to the deviation or variance of kernels, and in GroupNorm, in
# Google's vision_transformer and in timm.
STYLES = {
  'google': {'eps': 1e-5, 'eps_inside': False, 'gn_eps': 1e-6},
  'timm': {'eps': 1e-8, 'eps_inside': True, 'gn_eps': 1e-5},
}


def _layers(
  style: str, dtype: DTypeLike
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
  """The convolution and the norm of a key of STYLES."""
  eps = dict(STYLES[style])
  norm = functools.partial(GroupNorm, epsilon=eps.pop('gn_eps'), dtype=dtype)
  return functools.partial(StdConv, dtype=dtype, **eps), norm


class UnitV1(nn.Module):
  """Bottleneck unit with a norm after each convolution.

  The scale of the last norm, `gn3`, is initially 0, so that the unit is the
  ReLU of its shortcut.
  """

  features: int
  stride: int = 1
  num_groups: int = GROUPS
  dtype: DTypeLike = jnp.float32
  style: str = 'google'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H / stride, W / stride, 4 * features)."""
    conv, norm = _layers(self.style, self.dtype)
    norm = functools.partial(norm, self.num_groups)
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


def hybrid_stem(
  x: jax.Array,
  num_layers: Sequence[int],
  width_factor: float,
  dtype: DTypeLike,
  remat: str = 'none',
  style: str = 'google',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The ResNet-V1 in front of a hybrid ViT's patch convolution.

  It is called inside the compact `__call__` of a module, so that `conv_root`,
  `gn_root` and `block{s}/unit{u}/...` are parameters of the module itself, as
  in the released files. The root has stride 4, and each stage after the first
  has stride 2.

  Args:
    x: images (B, H, W, 3).
    num_layers: units per stage; () gives the root without stages.
    width_factor: the root has 64 * width_factor channels.
    dtype: dtype of the activations.
    remat: a key of `blocks.REMAT`, applied to each unit.
    style: a key of STYLES.

  Returns:
    Features (B, H / stride, W / stride, C) and named intermediates: 'gn_root'
    (before ReLU and pooling), 'root', 'block{s}', 'block{s}/unit{u}'.
  """
  width = int(64 * width_factor)
  check_groups(width, GROUPS)
  check_field('stem_style', style, tuple(STYLES))
  conv, norm = _layers(style, dtype)
  x = conv(width, size=7, stride=2, name='conv_root')(x)
  gn_root = norm(name='gn_root')(x)
  root = max_pool(nn.relu(gn_root), (3, 3), (2, 2), padding='SAME')
  x, out = run_stages(
    root,
    UnitV1,
    'unit{}',
    num_layers,
    [width * 2**i for i in range(len(num_layers))],
    remat,
    num_groups=GROUPS,
    dtype=dtype,
    style=style,
  )
  return x, {'gn_root': gn_root, 'root': root, **out}


class BiTV1(nn.Module):
  """The ResNet of the hybrids as a classifier: big_vision's model `bit`.

  No paper describes it.
  """

  num_classes: int = 1000  # 0 for no head: the logits are pre_logits
  num_layers: Sequence[int] = (3, 4, 6, 3)  # units per stage
  width_factor: float = 1
  head_bias: float = 0.0  # initial bias; -10 or -6.9 with a sigmoid loss
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
      logits (B, num_classes), float32, and intermediates: 'gn_root', 'root',
      'block{s}', 'block{s}/unit{u}', 'pre_logits_2d' (B, H / 32, W / 32, C),
      'pre_logits' (B, C).
    """
    del train
    x, out = hybrid_stem(
      images, self.num_layers, self.width_factor, self.dtype, self.remat
    )
    out |= {'pre_logits_2d': x, 'pre_logits': global_mean(x)}
    logits = classify(out['pre_logits'], self.num_classes, bias=self.head_bias)
    return logits, out


for _size, _units, _width in (
  ('50x1', (3, 4, 6, 3), 1),
  ('101x1', (3, 4, 23, 3), 1),
  ('152x2', (3, 8, 36, 3), 2),
):
  register(f'bit_v1_r{_size}', BiTV1, num_layers=_units, width_factor=_width)
