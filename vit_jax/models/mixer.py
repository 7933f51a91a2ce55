"""MLP-Mixer: An all-MLP Architecture for Vision (arXiv:2105.01601).

What differs from ViT: an MLP over the tokens, the same for every channel,
replaces attention (eq. 1, first line). There is neither a class token nor a
position table, and the parameters of a model are for one number of patches.
Stochastic depth does not rescale the branches that it keeps, as in big_vision.

B batch, N patches, D width.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.activations import GELU
from vit_jax.models.blocks import check_field, run_blocks
from vit_jax.models.dropout import DropPath, drop_path_rates
from vit_jax.models.heads import classify
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.patches import PatchSize, embed_patches
from vit_jax.models.registry import register
from vit_jax.models.tpu_layout import constrain

# Table 1. name: (width, depth, tokens_mlp_dim, mlp_dim).
SIZES = {
  's': (512, 8, 256, 2048),
  'b': (768, 12, 384, 3072),
  'l': (1024, 24, 512, 4096),
  'h': (1280, 32, 640, 5120),
}


class MixerBlock(nn.Module):
  """x + MLP(LN(x)) over the tokens, then x + MLP(LN(x)) over the channels."""

  tokens_mlp_dim: int
  mlp_dim: int
  activation: str = 'gelu_tanh'
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(B, N, D) -> (B, N, D), and the same array as the intermediate."""
    mlp = functools.partial(
      MlpBlock,
      activation=self.activation,
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      bias_init=nn.initializers.zeros,
    )
    drop_path = functools.partial(DropPath, rescale=False)
    y = LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x).swapaxes(1, 2)
    y = mlp(self.tokens_mlp_dim, name='token_mixing')(y, train).swapaxes(1, 2)
    x = x + drop_path()(y, rate, train)
    y = LayerNorm(dtype=self.dtype, name='LayerNorm_1')(x)
    y = mlp(self.mlp_dim, name='channel_mixing')(y, train)
    x = x + drop_path()(y, rate, train)
    return x, x


class Mixer(nn.Module):
  """MLP-Mixer; see the module docstring."""

  num_classes: int = 1000  # 0 for no head: the logits are pre_logits
  patch_size: PatchSize = 16
  width: int = 768
  depth: int = 12
  tokens_mlp_dim: int = 384  # hidden width of the MLP over tokens
  mlp_dim: int = 3072  # hidden width of the MLP over channels
  drop_path: float = 0.0  # rate of the last block; linear from 0 at the first
  activation: str = 'gelu_tanh'  # or 'gelu_erf' (timm)
  head_bias: float = 0.0  # initial bias; -10 or -6.9 with a sigmoid loss
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns drop path on (rng stream 'dropout').

    Returns:
      logits (B, num_classes), float32, and intermediates: 'stem' (B, h, w, D),
      'block_00', ..., 'tokens' = 'encoded' (B, N, D) after the last norm,
      'pre_logits' (B, D), the mean of the tokens.

    Raises:
      ValueError: `activation` or `remat` is unknown, or no patch fits into the
        image.
    """
    check_field('activation', self.activation, tuple(GELU))
    x = embed_patches(
      images, self.width, self.patch_size, dtype=self.dtype, name='stem'
    )
    out = {'stem': x}
    x = constrain(x.reshape(x.shape[0], -1, self.width))
    block = functools.partial(
      MixerBlock,
      tokens_mlp_dim=self.tokens_mlp_dim,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      dtype=self.dtype,
    )
    x, blocks = run_blocks(
      block,
      x,
      drop_path_rates(self.drop_path, self.depth),
      train,
      name='MixerBlock',
      remat=self.remat,
      scan=self.scan,
    )
    out |= {f'block_{i:02d}': y for i, y in enumerate(blocks)}
    # big_vision computes the last norm, the mean and the head in float32.
    x = LayerNorm(dtype=jnp.float32, name='pre_head_layer_norm')(x)
    out['encoded'] = out['tokens'] = x
    x = out['pre_logits'] = x.mean(axis=1)
    return classify(x, self.num_classes, bias=self.head_bias), out


_RELEASED = {
  'mixer_b16': (
    'imagenet1k/Mixer-B_16.npz',
    'imagenet21k/Mixer-B_16.npz',
    'jx_mixer_b16_224-76587d61.pth',
    'mixer_b16_224',
  ),
  'mixer_l16': (
    'imagenet1k/Mixer-L_16.npz',
    'imagenet21k/Mixer-L_16.npz',
    'jx_mixer_l16_224-92f9adc4.pth',
    'mixer_l16_224',
  ),
}
for _size, (_width, _depth, _tokens, _channels) in SIZES.items():
  for _patch in (14,) if _size == 'h' else (16, 32):
    _name = f'mixer_{_size}{_patch}'
    register(
      _name,
      Mixer,
      released=_RELEASED.get(_name, ()),
      patch_size=_patch,
      width=_width,
      depth=_depth,
      tokens_mlp_dim=_tokens,
      mlp_dim=_channels,
    )
