"""Batch normalization over the global batch or over equal groups of it."""

from typing import Any

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Batch normalization (arXiv:1502.03167) with float32 statistics.

  Inside `jax.jit` a batch that is sharded over devices is still one array, so
  `groups=1` normalizes with the statistics of the whole global batch. The
  PyTorch trainers that the released weights come from normalize the images of
  each device by themselves. With `groups` equal to their number of devices the
  result is theirs, whatever the number of devices here. Group g is the g-th
  contiguous block of the batch, so with as many groups as devices no
  statistics are communicated.

  Parameters `scale`, `bias` (C,); collection 'batch_stats': `mean`, `var` (C,),
  running averages of the groups' mean statistics.

  Attributes:
    momentum: share of the old running statistics; 1 - PyTorch's momentum.
    epsilon: added to the variance.
    groups: number of groups of the batch.
    axis: of the channels.
    dtype: of the result.
    unbiased: the running variance is n / (n - 1) times the batch's, as in
      PyTorch. The batch itself is always normalized with the biased variance.
      Flax and TensorFlow keep the biased one.
    scale_init: of the scale.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  groups: int = 1
  axis: int = -1
  dtype: Any = jnp.float32
  unbiased: bool = True
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, ..., C) -> the same shape; `train` uses and records the batch's own.

    Raises:
      ValueError: in training, if `groups` does not divide B, or if a group has
        one value per channel.
    """
    axis = self.axis % x.ndim
    channels = x.shape[axis]
    shape = [channels if i == axis else 1 for i in range(x.ndim)]
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    running = [
      self.variable('batch_stats', name, init, (channels,), jnp.float32)
      for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
    ]

    y = x.astype(jnp.float32)
    if not train:
      mean, var = (r.value.reshape(shape) for r in running)
    else:
      count = self._values_per_channel(x)
      y = y.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
      over = [i for i in range(1, y.ndim) if i != axis + 1]
      mean = jnp.mean(y, over, keepdims=True)
      var = jnp.mean(jnp.square(y), over, keepdims=True) - jnp.square(mean)
      var = jnp.maximum(var, 0)
      if not self.is_initializing():
        factor = count / (count - 1) if self.unbiased else 1.0
        for r, new in zip(running, (mean, factor * var), strict=True):
          new = jnp.mean(new.reshape(self.groups, channels), axis=0)
          r.value = self.momentum * r.value + (1 - self.momentum) * new
      shape = [1, *shape]
    factor = jax.lax.rsqrt(var + self.epsilon) * scale.reshape(shape)
    y = (y - mean) * factor + bias.reshape(shape)
    return y.reshape(x.shape).astype(self.dtype)

  def _values_per_channel(self, x: jax.Array) -> int:
    """Number of values that the statistics of a group are taken over."""
    if self.groups < 1 or x.shape[0] % self.groups:
      raise ValueError(
        f'bn_groups={self.groups} does not divide the batch of '
        f'{x.shape[0]}: use a divisor, or 1 for global statistics'
      )
    count = x.size // x.shape[self.axis] // self.groups
    if count < 2:
      raise ValueError(
        f'BatchNorm has one value per channel in training (activations '
        f'{tuple(x.shape)}, bn_groups={self.groups}): its variance is not '
        'defined. Use a larger batch, a larger image, or fewer bn_groups'
      )
    return count
