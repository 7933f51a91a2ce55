"""A convolutional patch embedding with BatchNorm, as in VOLO and DeepViT."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.initializers import TIMM, torch_conv_kernel
from vit_jax.models.patches import embed_patches
from vit_jax.models.products import convolution


class ConvStem(nn.Module):
  """Convolutions with BatchNorm and ReLU, then disjoint patches.

  Parameters `conv_{i}` and `bn_{i}`, and `proj` for the patches.

  Attributes:
    width: channels of the tokens.
    patch_size: side of a patch in pixels of the image, an even number. The
      first convolution halves the image, so a patch has patch_size / 2
      positions of its map.
    kernels: (size, stride) of each convolution; the strides multiply to 2.
    hidden: channels of the convolutions.
    batch_norm: function that makes the BatchNorm modules.
    dtype: dtype of the activations.
  """

  width: int
  patch_size: int
  kernels: tuple[tuple[int, int], ...]
  hidden: int = 64
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, H, W, 3) -> (B, H / patch_size, W / patch_size, width).

    Raises:
      ValueError: `patch_size` is not an even number, or no patch fits.
    """
    if not isinstance(self.patch_size, int) or self.patch_size % 2:
      raise ValueError(
        f'patch_size {self.patch_size} with a convolutional stem; allowed: an '
        'even number (its first convolution has stride 2)'
      )
    x = x.astype(self.dtype)
    for i, (size, stride) in enumerate(self.kernels):
      x = nn.Conv(
        self.hidden,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        name=f'conv_{i}',
        kernel_init=torch_conv_kernel,
        conv_general_dilated=convolution,
      )(x)
      norm = self.batch_norm(dtype=self.dtype, name=f'bn_{i}')
      x = nn.relu(norm(x, train))
    return embed_patches(
      x,
      self.width,
      self.patch_size // 2,
      init=TIMM,
      dtype=self.dtype,
      name='proj',
    )
