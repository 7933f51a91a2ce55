"""Patch embeddings by convolution."""

from flax import linen as nn
import jax
import jax.numpy as jnp

torch_conv_kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def torch_conv_bias(fan_in: int):
  """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of PyTorch's biases."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


def conv_patches(features: int, patch_size, **kwargs) -> nn.Conv:
  """A patch embedding: convolution with stride = kernel, VALID."""
  size = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
  return nn.Conv(features, size, strides=size, padding='VALID', **kwargs)


def check_patches(height: int, width: int, patch_size) -> None:
  """ValueError if not even one patch fits into an image."""
  ph, pw = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
  if height < ph or width < pw:
    raise ValueError(
      f'patch_size {ph}x{pw} is larger than the image or feature map '
      f'{height}x{width}: use a larger image_size or a smaller patch_size'
    )
