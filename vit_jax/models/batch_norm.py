"""Batch normalization over the global batch or over equal groups of it."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Batch normalization (arXiv:1502.03167) with float32 statistics.

  Inside `jax.jit` a batch that is sharded over devices is still one array, so
  `groups=1` normalizes with the statistics of the whole global batch. The
  PyTorch trainers that the released weights come from normalize each device's
  share by itself: `groups` = number of shares does that, whatever the number
  of devices here. Group g is the g-th contiguous block of the batch, so with
  as many groups as devices no statistics travel between them.

  Parameters `scale`, `bias` (C,); collection 'batch_stats': `mean`, `var` (C,),
  running averages of the groups' mean statistics. With one group it computes
  what `nn.BatchNorm` does.
  """

  momentum: float = 0.9  # 1 - PyTorch's momentum
  epsilon: float = 1e-5
  groups: int = 1
  axis: int = -1  # of the channels
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    """(B, ..., C) -> the same shape; `train` uses and records the batch's own.

    Raises:
      ValueError: in training, if `groups` does not divide B.
    """
    axis = self.axis % x.ndim
    channels = x.shape[axis]
    shape = [channels if i == axis else 1 for i in range(x.ndim)]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    running = [
      self.variable('batch_stats', name, init, (channels,), jnp.float32)
      for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
    ]

    y = x.astype(jnp.float32)
    if not train:
      mean, var = (r.value.reshape(shape) for r in running)
    else:
      if self.groups < 1 or x.shape[0] % self.groups:
        raise ValueError(
          f'bn_groups={self.groups} does not divide the batch of '
          f'{x.shape[0]}: use a divisor, or 1 for global statistics'
        )
      y = y.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
      over = [i for i in range(1, y.ndim) if i != axis + 1]
      mean = jnp.mean(y, over, keepdims=True)
      var = jnp.mean(jnp.square(y), over, keepdims=True) - jnp.square(mean)
      var = jnp.maximum(var, 0)
      if not self.is_initializing():
        for r, new in zip(running, (mean, var), strict=True):
          new = jnp.mean(new.reshape(self.groups, channels), axis=0)
          r.value = self.momentum * r.value + (1 - self.momentum) * new
      shape = [1, *shape]
    factor = jax.lax.rsqrt(var + self.epsilon) * scale.reshape(shape)
    y = (y - mean) * factor + bias.reshape(shape)
    return y.reshape(x.shape).astype(self.dtype)
