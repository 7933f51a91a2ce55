"""Image-to-tokens: the patch embedding of CeiT (arXiv:2103.11816, eq. 4)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.batch_norm import BatchNorm
from vit_jax.models.initializers import (
  TIMM,
  torch_conv_bias,
  torch_conv_kernel,
)
from vit_jax.models.max_pool import max_pool
from vit_jax.models.patches import embed_patches


class ImageToTokens(nn.Module):
  """Image-to-tokens (eq. 4): a convolutional stem, then disjoint patches.

  The stem is a 7x7 convolution, BatchNorm and a 3x3 max-pool; the convolution
  and the max-pool have stride 2.
  """

  width: int
  patch_size: tuple[int, int]  # in pixels of the image, 4 for a map position
  stem_width: int = 64
  stem_bias: bool = False
  stem_padding: int = 3
  pool_padding: int = 1
  batch_norm: Callable[..., BatchNorm] = BatchNorm
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, 3) -> tokens (B, h, w, D), and the map after the max-pool."""
    x = nn.Conv(
      self.stem_width,
      (7, 7),
      strides=2,
      padding=self.stem_padding,
      use_bias=self.stem_bias,
      dtype=self.dtype,
      kernel_init=torch_conv_kernel,
      bias_init=torch_conv_bias(49 * images.shape[-1]),
      name='conv',
    )(images.astype(self.dtype))
    x = self.batch_norm(dtype=self.dtype, name='bn')(x, train)
    pad: Any = ((self.pool_padding,) * 2,) * 2
    x = pooled = max_pool(x, (3, 3), (2, 2), pad)
    size = tuple(p // 4 for p in self.patch_size)
    x = embed_patches(
      x, self.width, size, init=TIMM, dtype=self.dtype, name='proj'
    )
    return x, pooled
