"""CaiT: Going deeper with Image Transformers (arXiv:2103.17239).

The model has two stages. In the first, `depth` self-attention blocks process
the patches without a class token. In the second, `cls_depth` class-attention
blocks update the class token from the patches, which stay the same. What
differs from ViT otherwise: every residual branch is scaled per channel
(LayerScale), the self-attention mixes the heads before and after the softmax
(talking heads), and drop path has the same rate in all blocks of the first
stage.

B batch, N patches, T = 1 + N tokens, D width, H heads, K = D / H.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.attention import (
  MixHeads,
  MultiHeadDotProductAttention,
)
from vit_jax.models.blocks import run_blocks, scale_channels
from vit_jax.models.dropout import Dropout, DropPath
from vit_jax.models.fused.attend import attend_fn
from vit_jax.models.heads import classify
from vit_jax.models.initializers import TIMM, normal02
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import timm_mlp
from vit_jax.models.patches import PatchSize, embed_patches
from vit_jax.models.products import attention_logits, attention_output
from vit_jax.models.registry import register
from vit_jax.models.softmax import softmax
from vit_jax.models.tokens import add_position_table, learned_token
from vit_jax.models.tpu_layout import constrain
from vit_jax.preprocessing import Preprocessing

# name: (width, depth, initial LayerScale). The heads of all sizes are 48 wide.
# The initial LayerScale is the one in the released code. It differs from the
# paper's rule in XXS-36, where the rule gives 1e-6. None uses the paper's rule,
# for the sizes that were not released.
SIZES = {
  'xxs24': (192, 24, 1e-5),
  'xxs36': (192, 36, 1e-5),
  'xs24': (288, 24, 1e-5),
  'xs36': (288, 36, None),
  's24': (384, 24, 1e-5),
  's36': (384, 36, 1e-6),
  's48': (384, 48, None),
  'm24': (768, 24, None),
  'm36': (768, 36, 1e-6),
  'm48': (768, 48, 1e-6),
}


# Patches (B, N, D), or the class token (B, 1, D) and the patches.
Tokens = jax.Array | tuple[jax.Array, jax.Array]


def layer_scale_init(depth: int) -> float:
  """Initial LayerScale for a depth, by the rule in section 2 of the paper."""
  if depth <= 18:
    return 0.1
  return 1e-5 if depth <= 24 else 1e-6


def talking_heads(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
  dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Talking heads (arXiv:2003.02436): mixes heads around the softmax.

  It is called inside an attention module and creates two parameters of it, each
  a matrix over the heads: `proj_l` mixes the logits, `proj_w` the
  probabilities.

  Args:
    q, k, v: (B, T, H, K).
    dropout: function applied to the mixed probabilities.
    dtype: dtype of the products over heads.

  Returns:
    The output (B, T, H, K), and the maps (B, H, T, T): 'softmax' before and
    'mixed' after `proj_w`. The rows of a mixed map need not sum to one.
  """
  mix = functools.partial(MixHeads, q.shape[2], dtype=dtype)
  logits = attention_logits(q * q.shape[-1] ** -0.5, k)
  probs = softmax(mix(name='proj_l')(logits))
  mixed = mix(name='proj_w')(probs)
  dropped = dropout(mixed) if dropout is not None else mixed
  y = attention_output(dropped.astype(v.dtype), v)
  return y, {'softmax': probs, 'mixed': mixed}


class Block(nn.Module):
  """x + γ1·attention(LN(x)), then x + γ2·MLP(LN(x)) (eq. 10).

  With `class_attention`, x is the pair (class token, patches). The class token
  attends to itself and to the patches, and only the class token changes.
  """

  num_heads: int
  mlp_dim: int
  layer_scale: float
  class_attention: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation: str = 'gelu_erf'
  dtype: DTypeLike = jnp.float32
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, x: Tokens, rate: float | jax.Array, train: bool
  ) -> tuple[Tokens, dict[str, Any]]:
    """Applies the block.

    Args:
      x: (B, N, D), or with `class_attention` ((B, 1, D), (B, N, D)).
      rate: drop-path rate of both branches.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      The structure and shapes of x; and intermediates: 'tokens', the tokens
      that the block changed, and with `return_attention` 'attention'.
    """
    norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
    attention = MultiHeadDotProductAttention(
      self.num_heads,
      self.attention_dropout,
      dtype=self.dtype,
      kernel_init=normal02,
      attend_fn=attend_fn(self.return_attention)
      if self.class_attention
      else functools.partial(talking_heads, dtype=self.dtype),
      name='attn',
    )
    mlp = timm_mlp(self.mlp_dim, self.dropout, self.activation, self.dtype)
    dropout = Dropout(self.dropout, deterministic=not train)

    patches = None
    if isinstance(x, tuple):  # class attention
      x, patches = x
      y = norm()(jnp.concatenate([x, patches], axis=1))
      y, maps = attention(y[:, :1], y, train)
    else:
      y = norm()(x)
      y, maps = attention(y, y, train)
    y = scale_channels(self, 'gamma_1', dropout(y), self.layer_scale)
    x = x + DropPath()(y, rate, train)
    y = mlp(norm()(x), train)
    y = scale_channels(self, 'gamma_2', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)

    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = maps
    return x if patches is None else (x, patches), aux


class CaiT(nn.Module):
  """Class-attention in image transformers; see the module docstring."""

  num_classes: int = 1000  # 0 for no head: the logits are pre_logits
  patch_size: PatchSize = 16
  width: int = 192
  depth: int = 24  # self-attention blocks
  cls_depth: int = 2  # class-attention blocks
  num_heads: int = 4
  mlp_dim: int | None = None  # None: 4 * width
  cls_mlp_dim: int | None = None  # None: mlp_dim
  layer_scale: float | None = None  # initial γ; None: layer_scale_init(depth)
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0  # rate of every self-attention block
  activation: str = 'gelu_erf'
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False  # scans the self-attention blocks
  return_attention: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      logits (B, num_classes), float32; and a dict: stem (B, h, w, D),
      with_posemb (B, N, D), block_00 ..., cls_block_00 ... (B, 1, D),
      encoded = tokens (B, 1 + N, D), pre_logits (B, D). With
      `return_attention` also three lists with an array per block: attention
      (B, H, N, N), the maps that weight the values; attention_softmax
      (B, H, N, N), the maps before `proj_w`, whose rows sum to one; and
      attention_cls (B, H, 1, 1 + N) of the class-attention blocks.

    Raises:
      ValueError: width not divisible by num_heads, or no patch fits.
    """
    dtype = jnp.dtype(self.dtype)
    x = embed_patches(
      images, self.width, self.patch_size, init=TIMM, dtype=dtype
    )
    out: dict[str, Any] = {'stem': x}
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, self.width)
    x = add_position_table(self, x, normal02, dropout=self.dropout, train=train)
    x = out['with_posemb'] = constrain(x)

    mlp_dim = self.mlp_dim or 4 * self.width
    scale = self.layer_scale
    block = functools.partial(
      Block,
      num_heads=self.num_heads,
      layer_scale=layer_scale_init(self.depth) if scale is None else scale,
      activation=self.activation,
      dtype=dtype,
      return_attention=self.return_attention,
    )
    x, auxes = run_blocks(
      functools.partial(
        block,
        mlp_dim=mlp_dim,
        dropout=self.dropout,
        attention_dropout=self.attention_dropout,
      ),
      x,
      [self.drop_path] * self.depth,
      train,
      name='block',
      remat=self.remat,
      scan=self.scan,
    )

    cls = learned_token(self, 'cls', x, normal02)
    cls_auxes = []
    for i in range(self.cls_depth):
      (cls, _), aux = block(
        mlp_dim=self.cls_mlp_dim or mlp_dim,
        class_attention=True,
        name=f'cls_block_{i}',
      )((cls, x), 0.0, train)
      cls_auxes.append(aux)

    for name, stage in (('block', auxes), ('cls_block', cls_auxes)):
      for i, aux in enumerate(stage):
        out[f'{name}_{i:02d}'] = aux['tokens']
    if self.return_attention:
      out['attention'] = [aux['attention']['mixed'] for aux in auxes]
      out['attention_softmax'] = [aux['attention']['softmax'] for aux in auxes]
      out['attention_cls'] = [aux['attention'] for aux in cls_auxes]

    x = jnp.concatenate([cls, x], axis=1)
    x = LayerNorm(epsilon=1e-6, dtype=dtype, name='encoder_norm')(x)
    out['encoded'] = out['tokens'] = x
    x = out['pre_logits'] = x[:, 0]
    return classify(x, self.num_classes, kernel_init=normal02), out


# Image sizes of the published files, all of which were trained with
# distillation.
_RELEASED = {
  'xxs24': (224, 384),
  'xxs36': (224, 384),
  'xs24': (384,),
  's24': (224, 384),
  's36': (384,),
  'm36': (384,),
  'm48': (448,),
}
for _size, (_width, _depth, _scale) in SIZES.items():
  register(
    f'cait_{_size}',
    CaiT,
    preprocessing=Preprocessing(
      crop=1.0, interpolation='bicubic', normalize='imagenet'
    ),
    released=tuple(
      name
      for size in _RELEASED.get(_size, ())
      for name in (
        f'{_size.upper()}_{size}.pth',
        f'cait_{_size}_{size}.fb_dist_in1k',
      )
    ),
    width=_width,
    depth=_depth,
    num_heads=_width // 48,
    mlp_dim=4 * _width,
    layer_scale=_scale,
  )
