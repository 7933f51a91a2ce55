"""DeiT: data-efficient training, distillation through attention.

arXiv:2012.12877. A relative of ViT: a plain DeiT is a ViT with the exact GELU,
so its names make a `vit.ViT`. A distilled DeiT (section 4, figure 2) has a
second learned token beside the class token, and a head on each of the two. The
head on the second token learns from a teacher. The field `fusion` says how the
two predictions are combined at test time (table 3).
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models import vit
from vit_jax.models.activations import GELU
from vit_jax.models.blocks import check_field
from vit_jax.models.encoder import Encoder
from vit_jax.models.heads import classify
from vit_jax.models.initializers import INITIALIZERS
from vit_jax.models.patches import PatchSize, embed_patches
from vit_jax.models.registry import register
from vit_jax.models.tokens import prepend_tokens
from vit_jax.preprocessing import Preprocessing


def _mean_of_probabilities(a: jax.Array, b: jax.Array) -> jax.Array:
  """The logarithm of the mean of two softmaxes, of logits (B, C)."""
  return jnp.logaddexp(jax.nn.log_softmax(a), jax.nn.log_softmax(b)) - jnp.log(
    2.0
  )


# The allowed values of `fusion`: how the class logits and the distillation
# logits become the logits outside training.
FUSIONS = {
  'mean_logits': lambda a, b: (a + b) / 2,  # as in the released code
  'mean_probs': _mean_of_probabilities,  # as in the paper
  'class': lambda a, b: a,
  'distill': lambda a, b: b,
}


class DistilledViT(nn.Module):
  """ViT with a class token and a distillation token."""

  num_classes: int = 1000  # 0 for no heads: the logits are pre_logits
  patch_size: PatchSize = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  fusion: str = 'mean_logits'  # key of FUSIONS
  area_sizes: tuple = ()  # largest area (height, width) of each leading block
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # rate of the last block; linear from 0 at the first
  activation: str = 'gelu_erf'
  norm_eps: float = 1e-6
  init_style: str = 'timm'  # key of INITIALIZERS
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns dropout and drop path on (rng stream 'dropout'), and the
        fusion off.

    Returns:
      float32 logits (B, num_classes): in training those of the class token,
      otherwise the fused ones. And intermediates: 'logits_class' and
      'logits_distill' (B, num_classes); 'pre_logits' (B, D), the class token
      after the last norm, and 'pre_logits_distill' (B, D), the distillation
      token; 'stem' (B, h, w, D); 'with_posemb', 'block_00', ..., 'tokens' =
      'encoded' (B, 2 + h * w, D); and with `return_attention` 'attention', a
      list of one (B, H, T, T) per block.

    Raises:
      ValueError: `fusion`, `activation`, `init_style` or `remat` is unknown,
        num_heads does not divide width, or no patch fits into the image.
    """
    check_field('fusion', self.fusion, tuple(FUSIONS))
    check_field('init_style', self.init_style, tuple(INITIALIZERS))
    check_field('activation', self.activation, tuple(GELU))
    init, dtype = INITIALIZERS[self.init_style], jnp.dtype(self.dtype)
    x = stem = embed_patches(
      images, self.width, self.patch_size, init=init, dtype=dtype
    )
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, self.width)
    x = prepend_tokens(self, ['cls', 'dist_token'], x, init.token)
    block = dict(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      grid=(height, width),
      prefix=2,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      activation=self.activation,
      norm_eps=self.norm_eps,
      init_style=self.init_style,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    x, out = Encoder(
      self.depth,
      block,
      area_sizes=tuple(self.area_sizes),
      drop_path=self.drop_path,
      remat=self.remat,
      scan=self.scan,
      name='Transformer',
    )(x, train)
    out |= {
      'stem': stem,
      'encoded': x,
      'tokens': x,
      'pre_logits': x[:, 0],
      'pre_logits_distill': x[:, 1],
    }
    a = classify(x[:, 0], self.num_classes, kernel_init=init.head)
    if not self.num_classes:
      return a, out
    b = classify(
      x[:, 1], self.num_classes, kernel_init=init.head, name='head_dist'
    )
    out |= {'logits_class': a, 'logits_distill': b}
    return a if train else FUSIONS[self.fusion](a, b), out


# Published at https://dl.fbaipublicfiles.com/deit/.
_RELEASED = {
  'deit_ti16': 'deit_tiny_patch16_224-a1311bcf.pth',
  'deit_s16': 'deit_small_patch16_224-cd65a155.pth',
  'deit_b16': 'deit_base_patch16_224-b5f2ef4d.pth',
  'deit_b16_384': 'deit_base_patch16_384-8de9b5d1.pth',
  'deit_ti16_distilled': 'deit_tiny_distilled_patch16_224-b40b3cf7.pth',
  'deit_s16_distilled': 'deit_small_distilled_patch16_224-649709d9.pth',
  'deit_b16_distilled': 'deit_base_distilled_patch16_224-df68dfff.pth',
  'deit_b16_distilled_384': 'deit_base_distilled_patch16_384-d0272ac0.pth',
}
for _name, _file in _RELEASED.items():
  _width, _depth, _mlp_dim, _heads = vit.SIZES[
    _name.removeprefix('deit_').split('16')[0]
  ]
  _distilled = 'distilled' in _name
  register(
    _name,
    DistilledViT if _distilled else vit.ViT,
    preprocessing=Preprocessing(
      (384, 384) if _name.endswith('384') else (224, 224),
      crop=0.875,
      interpolation='bicubic',
      normalize='imagenet',
    ),
    released=(_file, _file.rsplit('-', 1)[0]),
    patch_size=16,
    width=_width,
    depth=_depth,
    mlp_dim=_mlp_dim,
    num_heads=_heads,
    activation='gelu_erf',
    init_style='timm',
  )
