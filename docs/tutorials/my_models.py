"""A model of your own: a small ConvMixer (arXiv:2201.09792)."""

from flax import linen as nn
import jax.numpy as jnp

from vit_jax.models.registry import register
from vit_jax.preprocessing import Preprocessing


class ConvMixer(nn.Module):
  """Depthwise convolutions mix positions, 1x1 convolutions mix channels."""

  num_classes: int = 1000
  patch_size: int = 4
  width: int = 32
  depth: int = 2
  kernel_size: int = 3
  dtype: str = 'float32'  # of the computation; parameters stay float32

  @nn.compact
  def __call__(self, images, *, train: bool):
    del train  # there is no dropout and no batch normalization
    patch = (self.patch_size, self.patch_size)
    kernel = (self.kernel_size, self.kernel_size)
    x = nn.Conv(
      self.width, patch, strides=patch, dtype=self.dtype, name='embedding'
    )(images)
    for i in range(self.depth):
      y = nn.Conv(
        self.width,
        kernel,
        feature_group_count=self.width,
        dtype=self.dtype,
        name=f'positions_{i}',
      )(nn.gelu(x))
      x = x + nn.LayerNorm(dtype=self.dtype, name=f'norm_{i}')(y)
      x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name=f'channels_{i}')(
        nn.gelu(x)
      )
    x = x.mean(axis=(1, 2)).astype(jnp.float32)
    intermediates = {'pre_logits': x}
    if self.num_classes:
      x = nn.Dense(self.num_classes, name='head')(x)
    return x, intermediates


register('conv_mixer_ti', ConvMixer, preprocessing=Preprocessing(size=32))
register(
  'conv_mixer_s', ConvMixer, width=64, depth=6, preprocessing=Preprocessing(64)
)
