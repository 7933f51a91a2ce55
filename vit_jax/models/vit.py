"""ViT: An Image is Worth 16x16 Words (arXiv:2010.11929).

One module covers the paper: every size, pooling and position embedding
(table D.3), and the hybrids with a ResNet stem. Its fields also make the models
that have the same blocks: big_vision's ViT (arXiv:2205.01580), DeiT, DINOv2
with its LayerScale, and area attention in the leading blocks
(arXiv:1810.10126). The blocks are in `encoder`.

Parameters have the names of the released Google files, so that a file and a
tree can be compared by eye.

B batch, T tokens, D width, H heads.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.activations import GELU
from vit_jax.models.blocks import check_field
from vit_jax.models.encoder import Encoder
from vit_jax.models.heads import MAPHead, classify
from vit_jax.models.hybrid_stem import hybrid_stem
from vit_jax.models.initializers import INITIALIZERS
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.patches import PatchSize, embed_patches
from vit_jax.models.position import POSEMB_AT, POSEMBS
from vit_jax.models.registry import register
from vit_jax.models.tokens import prepend_tokens
from vit_jax.preprocessing import Preprocessing

# name: (width, depth, mlp_dim, num_heads), as in the papers and big_vision.
SIZES = {
  'mu': (32, 1, 128, 2),  # for debugging
  'ti': (192, 12, 768, 3),
  's': (384, 12, 1536, 6),
  'm': (512, 12, 2048, 8),
  'b': (768, 12, 3072, 12),
  'l': (1024, 24, 4096, 16),
  'so400m': (1152, 27, 4304, 16),
  'h': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'gopt': (1536, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
  'Gopt': (1536, 48, 8192, 16),
  'e': (1792, 56, 15360, 16),
}
POOLS = ('token', 'gap', 'map', 'none')


class ViT(nn.Module):
  """The Vision Transformer.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    patch_size: int or (height, width), in pixels; with a `stem`, in positions
      of its feature map.
    width: D.
    depth: number of blocks.
    num_heads: H.
    mlp_dim: width of the MLPs' hidden layer.
    pool: how tokens become features: 'token' takes the class token, 'gap' the
      mean of the patches, 'map' attends with a learned query
      (arXiv:2106.04560), 'none' applies the head to every token.
    class_token: whether there is a class token; None means that there is one if
      pool is 'token'.
    representation_size: width of a dense layer with tanh before the head; None
      for no such layer.
    posemb: one of POSEMBS.
    posemb_at: one of POSEMB_AT.
    class_posemb: whether the position table has a row for the class token, as
      in the released files. big_vision adds its table to the patches only.
    area_sizes: (height, width) of the largest area of each leading block with
      area attention.
    stem: units per stage of a ResNet before the patch embedding; () for its
      root without stages, None for no ResNet.
    stem_width: factor on the stem's channels.
    stem_style: key of `hybrid_stem.STYLES`, 'timm' for timm's weights.
    dropout: rate after the position embedding and in the blocks.
    attention_dropout: rate on the attention probabilities.
    drop_path: rate of the last block; linear from 0 at the first.
    layer_scale: initial value of LayerScale, a learned factor for each channel
      of a residual branch (CaiT, DINOv2); None for no factors.
    norm_after_pool: whether the last norm comes after pooling (timm's
      `fc_norm`) instead of before (`encoder_norm`).
    activation: 'gelu_tanh', or 'gelu_erf' for PyTorch weights.
    norm_eps: what LayerNorm adds to the variance.
    init_style: key of INITIALIZERS.
    head_bias: initial bias; -10 or -6.9 with a sigmoid loss.
    dtype: dtype of the activations; from the last norm on they are float32.
    remat: key of `blocks.REMAT`.
    scan: compiles one program for all blocks, whose parameters are stacked.
    return_attention: adds the attention probabilities to the intermediates.
    class_token_only: whether the last block computes only the class token, in
      training. The head does not use the other tokens, so logits and gradients
      stay the same; the work is 2 to 5 % less, and `tokens` has one token.
  """

  num_classes: int = 1000
  patch_size: PatchSize = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  pool: str = 'token'
  class_token: bool | None = None
  representation_size: int | None = None
  posemb: str = 'learn1d'
  posemb_at: str = 'stem'
  class_posemb: bool = True
  area_sizes: tuple = ()
  stem: tuple | None = None
  stem_width: float = 1.0
  stem_style: str = 'google'
  dropout: float = 0.0
  attention_dropout: float = 0.0
  drop_path: float = 0.0
  layer_scale: float | None = None
  norm_after_pool: bool = False
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6
  init_style: str = 'google'
  head_bias: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'
  scan: bool = False
  return_attention: bool = False
  class_token_only: bool = False

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, height, width, 3), normalized.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      logits (B, num_classes), or (B, T, num_classes) for pool 'none', float32;
      and a dict of intermediates: stem (B, h, w, D), with_posemb and
      block_00 ... (B, T, D), encoded = tokens (B, T, D), head_input and
      pre_logits (B, D) before and after the layer of `representation_size`, and
      with `return_attention` attention, a list of one (B, H, T, T) per block.

    Raises:
      ValueError: a field has a value that is not allowed, fields exclude each
        other, or no patch fits into the image.
    """
    self._check()
    init, dtype = INITIALIZERS[self.init_style], jnp.dtype(self.dtype)
    x, out = images.astype(dtype), {}
    if self.stem is not None:
      x, features = hybrid_stem(
        x,
        tuple(self.stem),
        self.stem_width,
        dtype,
        self.remat,
        self.stem_style,
      )
      out.update(features)
    x = embed_patches(x, self.width, self.patch_size, init=init, dtype=dtype)
    out['stem'] = x
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height * width, self.width)
    prefix = int(self._has_class_token())
    if prefix:
      x = prepend_tokens(self, ('cls',), x, init.token)

    x, features = Encoder(
      depth=self.depth,
      block=dict(
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        grid=(height, width),
        prefix=prefix,
        dropout=self.dropout,
        attention_dropout=self.attention_dropout,
        layer_scale=self.layer_scale,
        activation=self.activation,
        norm_eps=self.norm_eps,
        init_style=self.init_style,
        dtype=dtype,
        return_attention=self.return_attention,
      ),
      posemb=self.posemb,
      posemb_at=self.posemb_at,
      prefix_posemb=self.class_posemb,
      area_sizes=self.area_sizes,
      drop_path=self.drop_path,
      final_norm=not self.norm_after_pool,
      remat=self.remat,
      scan=self.scan,
      class_token_only=self.class_token_only,
      name='Transformer',
    )(x, train)
    out.update(features)
    out['encoded'] = out['tokens'] = x

    x = self._pool(x, prefix, train)
    if self.norm_after_pool:
      x = LayerNorm(epsilon=self.norm_eps, name='fc_norm')(x)
    out['head_input'] = x
    if self.representation_size:
      x = jnp.tanh(nn.Dense(self.representation_size, name='pre_logits')(x))
    out['pre_logits'] = x
    logits = classify(
      x, self.num_classes, kernel_init=init.head, bias=self.head_bias
    )
    return logits, out

  def _has_class_token(self) -> bool:
    return (
      self.pool == 'token' if self.class_token is None else self.class_token
    )

  def _pool(self, x: jax.Array, prefix: int, train: bool) -> jax.Array:
    """Tokens (B, T, D) -> features (B, D), or (B, T, D) for 'none'; float32."""
    x = x.astype(jnp.float32)
    if self.pool == 'token':
      return x[:, 0]
    if self.pool == 'gap':
      return x[:, prefix:].mean(axis=1)
    if self.pool == 'map':
      return MAPHead(
        self.num_heads,
        self.mlp_dim,
        self.activation,
        self.norm_eps,
        name='MAPHead_0',
      )(x, train)
    return x

  def _check(self) -> None:
    for field, allowed in (
      ('pool', POOLS),
      ('posemb', POSEMBS),
      ('posemb_at', POSEMB_AT),
      ('init_style', tuple(INITIALIZERS)),
      ('activation', tuple(GELU)),
    ):
      check_field(field, getattr(self, field), allowed)
    if self.pool == 'token' and not self._has_class_token():
      raise ValueError(
        "class_token=False leaves no token for pool='token': use "
        "class_token=None, or pool='gap' or 'map'"
      )
    if self.posemb in ('relative', 'none') and self.posemb_at != 'stem':
      raise ValueError(
        f'posemb={self.posemb!r} has no table to add at posemb_at='
        f"{self.posemb_at!r}; use posemb_at='stem'"
      )
    if not self.class_posemb and self.posemb_at == 'every_layer':
      raise ValueError(
        "class_posemb=False and posemb_at='every_layer' exclude each other: "
        "use posemb_at='stem' or 'every_layer_shared'"
      )
    if len(self.area_sizes) > self.depth:
      raise ValueError(
        f'area_sizes has {len(self.area_sizes)} entries for depth={self.depth} '
        'blocks: give one for each leading block with area attention'
      )
    if self.area_sizes and self.posemb == 'relative':
      raise ValueError(
        "area_sizes and posemb='relative' exclude each other: leave area_sizes "
        'empty, or use another posemb'
      )
    if self.class_token_only and (
      self.pool != 'token'
      or self.scan
      or self.return_attention
      or self.posemb == 'relative'
      or len(self.area_sizes) == self.depth
    ):
      raise ValueError(
        "class_token_only=True needs pool='token' and scan=False, and excludes "
        "return_attention=True, posemb='relative' and area attention in the "
        'last block: use class_token_only=False'
      )


def _fields(size: str) -> dict[str, Any]:
  return dict(
    zip(('width', 'depth', 'mlp_dim', 'num_heads'), SIZES[size], strict=True)
  )


_RELEASED = {
  'vit_ti16': ('augreg/Ti_16-*.npz', 'vit_tiny_patch16_224'),
  'vit_s16': ('augreg/S_16-*.npz', 'vit_small_patch16_224'),
  'vit_s32': ('augreg/S_32-*.npz', 'vit_small_patch32_224'),
  'vit_b8': ('imagenet21k/ViT-B_8.npz', 'vit_base_patch8_224'),
  'vit_b16': (
    'imagenet21k/ViT-B_16.npz',
    'augreg/B_16-*.npz',
    'vit_base_patch16_224',
  ),
  'vit_b32': (
    'imagenet21k/ViT-B_32.npz',
    'augreg/B_32-*.npz',
    'vit_base_patch32_224',
  ),
  'vit_l16': (
    'imagenet21k/ViT-L_16.npz',
    'augreg/L_16-*.npz',
    'vit_large_patch16_224',
  ),
  'vit_l32': ('imagenet21k/ViT-L_32.npz', 'vit_large_patch32_224'),
  'vit_h14': ('imagenet21k/ViT-H_14.npz', 'vit_huge_patch14_224'),
}
for _size in SIZES:
  for _patch in (8, 14, 16, 32):
    _name = f'vit_{_size}{_patch}'
    register(
      _name,
      ViT,
      released=_RELEASED.get(_name, ()),
      patch_size=_patch,
      **_fields(_size),
    )

# Hybrids. R+Ti/16 has its published name, although a token is 32 pixels wide:
# the published code pools with stride 2 at the end of the root.
for _name, _size, _patch, _stem, _file in (
  ('r_vit_ti16', 'ti', 8, (), 'augreg/R_Ti_16-*.npz'),
  ('r26_vit_s32', 's', 1, (2, 2, 2, 2), 'augreg/R26_S_32-*.npz'),
  ('r26_vit_b32', 'b', 1, (2, 2, 2, 2), 'imagenet21k/R26+ViT-B_32.npz'),
  ('r50_vit_b16', 'b', 1, (3, 4, 9), 'imagenet21k/R50+ViT-B_16.npz'),
  ('r50_vit_l32', 'l', 1, (3, 4, 6, 3), 'imagenet21k/R50+ViT-L_32.npz'),
  # Only in the paper's figure 5, without a file.
  ('r50_vit_b32', 'b', 1, (3, 4, 6, 3), ''),
  ('r50_vit_l16', 'l', 1, (3, 4, 9), ''),
):
  register(
    _name,
    ViT,
    released=(_file,) if _file else (),
    patch_size=_patch,
    stem=_stem,
    **_fields(_size),
  )

# Area attention in the first two blocks, with areas of at most 2 tokens, as in
# the second version of the area-attention project.
for _size in ('ti', 's', 'b'):
  register(
    f'aa_vit_{_size}16',
    ViT,
    preprocessing=Preprocessing(
      crop=0.875, interpolation='bicubic', normalize='imagenet'
    ),
    patch_size=16,
    area_sizes=((1, 2), (1, 2)),
    norm_eps=1e-5,
    activation='gelu_erf',
    init_style='torch',
    **_fields(_size),
  )

# DINOv2 (arXiv:2304.07193) without registers: ViTs with LayerScale, whose files
# have no head. The paper's g/14 is not here, because its MLP is another one.
for _size, _word in (('s', 'small'), ('b', 'base'), ('l', 'large')):
  register(
    f'vit_{_size}14_dinov2',
    ViT,
    preprocessing=Preprocessing(
      (518, 518), crop=1.0, interpolation='bicubic', normalize='imagenet'
    ),
    patch_size=14,
    layer_scale=1e-5,
    activation='gelu_erf',
    released=(f'vit_{_word}_patch14_dinov2.lvd142m',),
    **_fields(_size),
  )
