"""What the convolutional networks share: ResNet, RegNetY, EfficientNet, ...

They serve as teachers and as comparators of the transformers. Their papers'
code is PyTorch or TensorFlow, which differ in padding and in the constants of
BatchNorm; `ConvLayers` holds these choices for one network.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.blocks import REMAT, check_field
from vit_jax.models.tpu_layout import split_batch

# 'symmetric': (k - 1) / 2 zeros on both sides (PyTorch). 'tf_same': as much as
# makes the result ceil(n / stride) long, the odd zero at the end (TensorFlow).
# They differ for a stride of 2 and an even length.
PADDINGS = ('symmetric', 'tf_same')


def fan_out_normal(groups: int = 1) -> Initializer:
  """N(0, 2 / fan_out), the fan-out divided by the number of groups."""
  return nn.initializers.variance_scaling(2.0 * groups, 'fan_out', 'normal')


class ConvLayers(NamedTuple):
  """Makes the layers of one network. Its methods are called in compact ones.

  Attributes:
    dtype: of the activations.
    bn_groups: groups of the batch with statistics of their own in training.
    epsilon: of BatchNorm.
    momentum: of BatchNorm's running statistics, 1 - PyTorch's.
    padding: one of PADDINGS.
  """

  dtype: Any = jnp.float32
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

  def explicit_padding(
    self, shape: Sequence[int], size: int, stride: int
  ) -> tuple[tuple[int, int], tuple[int, int]]:
    """(before, after) of both axes for a map of shape (height, width)."""
    if self.padding == 'symmetric':
      half = (size // 2, size // 2)
      return half, half
    pads = []
    for n in shape:
      total = max((-(-n // stride) - 1) * stride + size - n, 0)
      pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


class SqueezeExcite(nn.Module):
  """Scales channels by a gate that reads their means (arXiv:1709.01507).

  Parameters `reduce` (C, hidden) and `expand` (hidden, C), with biases.
  """

  hidden: int
  activation: Callable[[jax.Array], jax.Array]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, C) -> the same shape, and the gate (B, C)."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=fan_out_normal()
    )
    y = global_mean(x)
    y = self.activation(dense(self.hidden, name='reduce')(y))
    gate = nn.sigmoid(dense(x.shape[-1], name='expand')(y))
    return x * gate[:, None, None], gate


class Stage(nn.Module):
  """Units `unit1`, `unit2`, ... one after the other.

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
        # Arguments are counted with self: rate and train are static.
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
  """Stages `block1`, `block2`, ...; called inside a compact method.

  Args:
    x: (B, H, W, C).
    stages: the units of each stage, see `Stage`.
    rates: drop-path rate of every unit of the network, in order.
    train: whether this is training.
    remat: key of `blocks.REMAT`.
    out: gets the intermediates 'block{s}' and 'block{s}/unit{u}'.

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
  """3x3 maxima at stride 2; the border is padded by one with -inf."""
  padding: Any = ((1, 1), (1, 1))
  return nn.max_pool(x, (3, 3), (2, 2), padding)


def global_mean(x: jax.Array) -> jax.Array:
  """(B, H, W, C) -> (B, C), summed in float32."""
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
