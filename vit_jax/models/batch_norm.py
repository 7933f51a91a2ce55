"""Batch normalization over the global batch or over equal groups of it."""

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
  """Batch normalization (arXiv:1502.03167) with float32 statistics.

  Inside `jax.jit` a batch that is sharded over devices is still one array, so
  `groups=1` normalizes with the statistics of the whole global batch. The
  PyTorch trainers that made the released weights normalize the images of each
  device with statistics of their own. `groups` equal to the number of devices
  of such a trainer reproduces its result on any number of devices. Group g is
  the g-th contiguous block of the batch, so with as many groups as devices the
  statistics are not communicated.

  Parameters `scale` and `bias` (C,). The collection 'batch_stats' has `mean`
  and `var` (C,): running averages of the statistics, averaged over the groups.

  Attributes:
    momentum: weight of the old running statistics in an update; 1 minus the
      number that PyTorch calls momentum.
    epsilon: added to the variance.
    groups: number of groups of the batch.
    axis: the axis of the channels.
    dtype: dtype of the result.
    unbiased: whether the running variance averages the batches' unbiased
      variances, n / (n - 1) times the biased ones, as in PyTorch; Flax and
      TensorFlow average the biased ones. The batch itself is always normalized
      with its biased variance.
    scale_init: initializer of the scale.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  groups: int = 1
  axis: int = -1
  dtype: DTypeLike = jnp.float32
  unbiased: bool = True
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalizes each channel.

    Args:
      x: (B, ..., C), or with the channels in `axis`.
      train: normalizes with the statistics of the batch and updates the running
        ones; False normalizes with the running statistics.

    Returns:
      The shape of x.

    Raises:
      ValueError: in training, if `groups` does not divide B, or if a group has
        only one value per channel.
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
    """Number of values of one channel in a group; ValueError if below 2."""
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
        'defined. Use a larger batch (data.batch_size), a larger image '
        '(data.image_size), or fewer groups (model.bn_groups)'
      )
    return count
