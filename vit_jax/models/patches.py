"""Patch embeddings: images or feature maps become maps of tokens."""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
from jax.typing import DTypeLike

from vit_jax.models.initializers import GOOGLE, Initializers

PatchSize = int | Sequence[int]  # one number of pixels, or (height, width)


def patch_shape(patch_size: PatchSize) -> tuple[int, int]:
  """(height, width) of a patch whose size is one number or a pair."""
  if isinstance(patch_size, int):
    return patch_size, patch_size
  height, width = patch_size
  return int(height), int(width)


def embed_patches(
  x: jax.Array,
  width: int,
  patch_size: PatchSize,
  *,
  init: Initializers = GOOGLE,
  dtype: DTypeLike = 'float32',
  name: str = 'embedding',
  use_bias: bool = True,
) -> jax.Array:
  """Maps every patch linearly: a convolution whose stride is its kernel size.

  It is called inside the compact method of a module, which gets the parameters
  `{name}/kernel` (patch height, patch width, C, width) and `{name}/bias`. Rows
  at the bottom and columns at the right that do not fill a patch are cut off.

  Args:
    x: images or a feature map, (B, H, W, C).
    width: channels of the result.
    patch_size: int or (height, width), in entries of x.
    init: the initializers of a code base; `patch_kernel` and `patch_bias` are
      used.
    dtype: dtype of the convolution and of the result.
    name: name of the convolution.
    use_bias: whether the convolution has a bias.

  Returns:
    (B, H / patch height, W / patch width, width).

  Raises:
    ValueError: no patch fits into `x`.
  """
  shape = patch_shape(patch_size)
  check_patches(x.shape[1], x.shape[2], shape)
  return nn.Conv(
    width,
    shape,
    strides=shape,
    padding='VALID',
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=init.patch_kernel,
    bias_init=init.patch_bias(math.prod(shape) * x.shape[-1]),
    name=name,
  )(x)


def check_patches(height: int, width: int, patch_size: PatchSize) -> None:
  """Raises ValueError if no patch fits into an image of height x width."""
  patch_height, patch_width = patch_shape(patch_size)
  if height < patch_height or width < patch_width:
    raise ValueError(
      f'patch_size {patch_height}x{patch_width} is larger than the image or '
      f'feature map {height}x{width}: use a larger image_size or a smaller '
      'patch_size'
    )
