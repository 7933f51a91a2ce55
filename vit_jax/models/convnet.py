"""What the convolutional networks share: ResNet, RegNetY, EfficientNet, ...

They are teachers of the transformers, and models to compare with them. The code
of their papers is in PyTorch or TensorFlow, which differ in padding and in the
constants of BatchNorm; `ConvLayers` holds these choices for one network.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import REMAT, check_field
from vit_jax.models.heads import global_mean
from vit_jax.models.max_pool import max_pool
from vit_jax.models.products import convolution
from vit_jax.models.tpu_layout import split_batch

# How a map is padded for a kernel of size k. 'symmetric', as in PyTorch: with
# (k - 1) / 2 zeros on both sides. 'tf_same', as in TensorFlow: with as many
# zeros as make the result ceil(n / stride) long, half of them on each side, and
# one more at the end if their number is odd. The two differ for stride 2 and
# even n.
PADDINGS = ('symmetric', 'tf_same')


def fan_out_normal(groups: int = 1) -> Initializer:
  """The initializer N(0, 2 / fan_out) of a convolution.

  Args:
    groups: of the convolution. Each group has 1 / groups of the outputs, and
      the fan-out counts only those.
  """
  return nn.initializers.variance_scaling(2.0 * groups, 'fan_out', 'normal')


class ConvLayers(NamedTuple):
  """Makes the layers of one network.

  Its methods are called inside the compact methods of modules.

  Attributes:
    dtype: dtype of the activations.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    epsilon: added to the variance in BatchNorm.
    momentum: weight of the old running statistics in BatchNorm; 1 minus
      PyTorch's momentum.
    padding: one of PADDINGS.
  """

  dtype: DTypeLike = jnp.float32
  bn_groups: int = 1
  epsilon: float = 1e-5
  momentum: float = 0.9
  padding: str = 'symmetric'

  def conv(
    self,
    x: jax.Array,
    features: int,
    size: int,
    *,
    name: str,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer | None = None,
  ) -> jax.Array:
    """A convolution, (B, H, W, C) -> (B, H / stride, W / stride, features)."""
    return nn.Conv(
      features,
      (size, size),
      strides=stride,
      padding='SAME' if self.padding == 'tf_same' else size // 2,
      feature_group_count=groups,
      use_bias=use_bias,
      dtype=self.dtype,
      kernel_init=kernel_init or fan_out_normal(groups),
      conv_general_dilated=convolution,
      name=name,
    )(x)

  def norm(
    self,
    x: jax.Array,
    train: bool,
    *,
    name: str,
    scale_init: Initializer = nn.initializers.ones,
  ) -> jax.Array:
    """A BatchNorm over the channels of (B, H, W, C)."""
    return BatchNorm(
      momentum=self.momentum,
      epsilon=self.epsilon,
      groups=self.bn_groups,
      dtype=self.dtype,
      scale_init=scale_init,
      name=name,
    )(x, train)

  def shortcut(
    self, x: jax.Array, width: int, stride: int, train: bool
  ) -> jax.Array:
    """The input of a residual unit, brought to the shape of the unit's output.

    Where the number of channels or the resolution changes, it passes through
    the 1x1 convolution `conv_proj` and the BatchNorm `norm_proj`.

    Args:
      x: (B, H, W, C).
      width: channels of the unit's output.
      stride: stride of the unit.
      train: True in training, False in evaluation.

    Returns:
      (B, H / stride, W / stride, width).
    """
    if x.shape[-1] == width and stride == 1:
      return x
    y = self.conv(x, width, 1, stride=stride, name='conv_proj')
    return self.norm(y, train, name='norm_proj')

  def explicit_padding(
    self, shape: Sequence[int], size: int, stride: int
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding of a map for a layer that needs it in numbers.

    Args:
      shape: (height, width) of the map.
      size: size of the kernel.
      stride: stride of the layer.

    Returns:
      Numbers of zeros (before, after), for rows and for columns.
    """
    if self.padding == 'symmetric':
      half = (size // 2, size // 2)
      return half, half
    pads = []
    for n in shape:
      total = max((-(-n // stride) - 1) * stride + size - n, 0)
      pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


class SqueezeExcite(nn.Module):
  """Squeeze-and-excitation (arXiv:1709.01507).

  Multiplies each channel by a number in (0, 1), its gate. Two dense layers
  compute the gates from the means of all channels: `reduce` (C, hidden) and
  `expand` (hidden, C), with biases.

  Attributes:
    hidden: width between the two layers.
    activation: function after the first layer.
    dtype: dtype of the activations.
  """

  hidden: int
  activation: Callable[[jax.Array], jax.Array]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, C) -> the same shape, and the gate (B, C)."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=fan_out_normal()
    )
    y = global_mean(x).astype(x.dtype)
    y = self.activation(dense(self.hidden, name='reduce')(y))
    gate = nn.sigmoid(dense(x.shape[-1], name='expand')(y))
    return x * gate[:, None, None], gate


class Stage(nn.Module):
  """Applies units named `unit1`, `unit2`, ... one after the other.

  Attributes:
    units: a `functools.partial` of a Linen class for each unit, whose
      `__call__(x, rate, train)` returns x and a dict of intermediates.
    rates: drop-path rate of each unit.
    remat: key of `blocks.REMAT`, applied to each unit.
  """

  units: tuple[functools.partial, ...]
  rates: tuple[float, ...]
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(B, H, W, C) -> (B, H', W', C'), {'unit1': its output, ...}."""
    check_field('remat', self.remat, tuple(REMAT))
    out = {}
    units = zip(self.units, self.rates, strict=True)
    for i, (unit, rate) in enumerate(units, start=1):
      cls: Any = unit.func
      if self.remat != 'none':
        # rate and train are static; their positions are counted with self.
        cls = nn.remat(cls, policy=REMAT[self.remat], static_argnums=(2, 3))
      x, aux = cls(**unit.keywords, name=f'unit{i}')(x, float(rate), train)
      x = split_batch(x)
      out[f'unit{i}'] = x
      out |= {f'unit{i}/{name}': y for name, y in aux.items()}
    return x, out


def run_stages(
  x: jax.Array,
  stages: Sequence[Sequence[functools.partial]],
  rates: Sequence[float],
  train: bool,
  remat: str,
  out: dict[str, Any],
) -> jax.Array:
  """Applies stages named `block1`, `block2`, ...; called in a compact method.

  Args:
    x: (B, H, W, C).
    stages: the units of each stage, as in `Stage`.
    rates: drop-path rate of every unit of the network, in order.
    train: True in training, False in evaluation.
    remat: key of `blocks.REMAT`.
    out: dict that the intermediates 'block{s}' and 'block{s}/unit{u}' are
      added to.

  Returns:
    The output of the last stage.
  """
  first = 0
  for s, units in enumerate(stages, start=1):
    end = first + len(units)
    stage = Stage(
      tuple(units), tuple(rates[first:end]), remat, name=f'block{s}'
    )
    x, features = stage(x, train)
    out[f'block{s}'] = x
    out.update({f'block{s}/{name}': y for name, y in features.items()})
    first = end
  return x


def max_pool_3x3(x: jax.Array) -> jax.Array:
  """3x3 max-pool at stride 2: (B, H, W, C) -> (B, H / 2, W / 2, C).

  The map is padded by one entry of -inf on each side; odd sizes are rounded up.
  """
  padding: Any = ((1, 1), (1, 1))
  return max_pool(x, (3, 3), (2, 2), padding)
