"""Patch embeddings: images or feature maps become maps of tokens."""

from collections.abc import Sequence
import math
from typing import Any

from flax import linen as nn
import jax
from jax.typing import DTypeLike

from vit_jax.models.initializers import GOOGLE, Initializers
from vit_jax.models.products import patch_convolution

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
    conv_general_dilated=patch_convolution,
  )(x)


def unseen_pixels(model: Any, size: tuple[int, int]) -> str:
  """Says which pixels a model does not see; '' if it sees all of them.

  Args:
    model: a module; only those with a field `patch_size` and without another
      stem are judged.
    size: (height, width) of the images.
  """
  patch = getattr(model, 'patch_size', None)
  if patch is None or getattr(model, 'stem', None) is not None:
    return ''
  shape = patch_shape(patch)
  cut = [n % p for n, p in zip(size, shape, strict=True)]
  if not any(cut) or any(n < p for n, p in zip(size, shape, strict=True)):
    return ''
  words = [
    f'the last {n} {name}'
    for n, name in zip(cut, ('rows', 'columns'), strict=True)
    if n
  ]
  below = [n - c for n, c in zip(size, cut, strict=True)]
  above = [
    n if not c else n - c + p for n, c, p in zip(size, cut, shape, strict=True)
  ]
  sizes = lambda pair: f'{pair[0]}x{pair[1]}'
  return (
    f'images of {sizes(size)} px are no multiple of the patch of '
    f'{sizes(shape)}: {" and ".join(words)} of pixels are cut off. The nearest '
    f'sizes without loss are {sizes(below)} and {sizes(above)}'
  )


def check_patches(height: int, width: int, patch_size: PatchSize) -> None:
  """Raises ValueError if no patch fits into an image of height x width."""
  patch_height, patch_width = patch_shape(patch_size)
  if height < patch_height or width < patch_width:
    raise ValueError(
      f'patch_size {patch_height}x{patch_width} is larger than the image or '
      f'feature map {height}x{width}: use a larger image_size or a smaller '
      'patch_size'
    )
