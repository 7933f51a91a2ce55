"""Names of released ViT files, with those of hybrids and area attention.

The formats: 'npz' is that of the published Google files, which are older than
Linen and number the submodules of a block by their position and not by class.
'big_vision' has Linen names, but its position table is at the top level and has
no row for the class token. 'timm' is that of timm, DeiT and DINOv2. 'official'
is that of the area-attention project. 'transformers' and 'transformers5' are
those of Hugging Face's library. Files with plain Linen names are in the format
'flax'.
"""

from vit_jax.models.vit import ViT
from vit_jax.weights import transformers_rules
from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import attention, fused, layer, mlp, norm

_BLOCK = r'Transformer/encoderblock_(\d+)'
_TIMM_BLOCK = r'blocks.\1'
_ATTENTION = 'MultiHeadDotProductAttention_0'
_STEM = r'block(\d+)/unit(\d+)'
_GROUP_NORM = r'params/((?:.*/)?gn(?:\d|_root|_proj)/(?:scale|bias))'


def _npz() -> list[Rule]:
  block = r'(params/)(Transformer/encoderblock_\d+)'
  return [
    Rule(rf'{block}/LayerNorm_1/(.*)', r'\2/LayerNorm_2/\3'),
    Rule(
      rf'{block}/MultiHeadDotProductAttention_0/(.*)',
      r'\2/MultiHeadDotProductAttention_1/\3',
    ),
    Rule(rf'{block}/MlpBlock_0/(.*)', r'\2/MlpBlock_3/\3'),
    Rule(_GROUP_NORM, r'\1', 'nd4'),
    Rule('params/(.*)', r'\1'),
  ]


def _big_vision() -> list[Rule]:
  return [
    Rule('params/Transformer/posembed_input/pos_embedding', 'pos_embedding'),
    Rule('params/(.*)', r'\1'),
  ]


def _timm_stem(root_only: bool) -> list[Rule]:
  """timm's names of the ResNet stem.

  Args:
    root_only: whether the stem has no stages; timm's names then lack `stem.`.
  """
  backbone = 'patch_embed.backbone'
  root = backbone if root_only else f'{backbone}.stem'

  unit = backbone + '.stages.{1-1}.blocks.{2-1}'
  return [
    *layer('conv_root', f'{root}.conv', 'conv'),
    *norm('gn_root', f'{root}.norm'),
    *layer(rf'{_STEM}/conv(\d)', rf'{unit}.conv\3', 'conv'),
    *norm(rf'{_STEM}/gn(\d)', rf'{unit}.norm\3'),
    *layer(f'{_STEM}/conv_proj', f'{unit}.downsample.conv', 'conv'),
    *norm(f'{_STEM}/gn_proj', f'{unit}.downsample.norm'),
  ]


def encoder_rules() -> list[Rule]:
  """timm's names of tokens, blocks and heads, which DeiT's files have too."""
  return [
    Rule('params/cls', 'cls_token'),
    Rule('params/Transformer/posembed_input/pos_embedding', 'pos_embed'),
    *layer('embedding', 'patch_embed.proj', 'conv'),
    Rule(rf'params/{_BLOCK}/gamma_(\d)', rf'{_TIMM_BLOCK}.ls\2.gamma'),
    *attention(
      f'{_BLOCK}/{_ATTENTION}',
      f'{_TIMM_BLOCK}.attn.qkv',
      f'{_TIMM_BLOCK}.attn.proj',
    ),
    *mlp(f'{_BLOCK}/MlpBlock_0', f'{_TIMM_BLOCK}.mlp'),
    *norm(f'{_BLOCK}/LayerNorm_0', f'{_TIMM_BLOCK}.norm1'),
    *norm(f'{_BLOCK}/LayerNorm_1', f'{_TIMM_BLOCK}.norm2'),
    *norm('Transformer/encoder_norm', 'norm'),
    *norm('fc_norm', 'fc_norm'),
    *layer('pre_logits', 'pre_logits.fc'),
    *layer(r'(head\w*)', r'\1'),
  ]


def pool_rules() -> list[Rule]:
  """timm's names of the attention pooling (SigLIP), the MAP head here."""
  flax, torch = f'MAPHead_0/{_ATTENTION}', 'attn_pool'
  return [
    Rule('params/MAPHead_0/probe', f'{torch}.latent'),
    *layer(f'{flax}/query', f'{torch}.q'),
    *fused(flax, f'{torch}.kv', ('key', 'value')),
    *layer(f'{flax}/out', f'{torch}.proj'),
    *norm('MAPHead_0/LayerNorm_0', f'{torch}.norm'),
    *mlp('MAPHead_0/MlpBlock_0', f'{torch}.mlp'),
  ]


def _timm(model: ViT) -> list[Rule]:
  stem = model.stem
  return [
    *encoder_rules(),
    *pool_rules(),
    *([] if stem is None else _timm_stem(root_only=not stem)),
  ]


def _area(model: ViT) -> list[Rule]:
  """The names of the area-attention project.

  Its blocks with area attention have separate projections and the others a
  fused one. So the rules for separate projections, which come first, match only
  the numbers of the area blocks.
  """
  torch = r'transformer.layers.\1'
  numbers = '|'.join(str(i) for i in range(len(model.area_sizes)))
  area = f'Transformer/encoderblock_({numbers or "(?!)"})/{_ATTENTION}'
  module = f'{torch}.0.fn.fn.multihead_area_attention'
  rules = [
    layer(f'{area}/{projection}', f'{module}.{projection}_projection')
    for projection in ('query', 'key', 'value')
  ]
  rules += [
    layer(f'{area}/out', f'{module}.output_projection'),
    attention(
      f'{_BLOCK}/{_ATTENTION}',
      f'{torch}.0.fn.fn.to_qkv',
      f'{torch}.0.fn.fn.to_out.0',
    ),
    layer(f'{_BLOCK}/MlpBlock_0/Dense_0', f'{torch}.1.fn.fn.net.0'),
    layer(f'{_BLOCK}/MlpBlock_0/Dense_1', f'{torch}.1.fn.fn.net.3'),
    norm(f'{_BLOCK}/LayerNorm_0', f'{torch}.0.fn.norm'),
    norm(f'{_BLOCK}/LayerNorm_1', f'{torch}.1.fn.norm'),
    norm('Transformer/encoder_norm', 'mlp_head.0'),
    layer('embedding', 'patch_to_embedding'),
    layer('head', 'mlp_head.1'),
  ]
  return [
    Rule('params/cls', 'cls_token'),
    Rule('params/Transformer/posembed_input/pos_embedding', 'pos_embedding'),
    *(rule for group in rules for rule in group),
  ]


# {class: {format: its rules, or a function that returns them for a model}}.
MAPS = {
  'ViT': {
    'npz': _npz(),
    'big_vision': _big_vision(),
    'timm': _timm,
    'official': _area,
    'transformers': transformers_rules.rules(version=4),
    'transformers5': transformers_rules.rules(version=5),
  }
}
# DINOv2's files have a token that is used in pre-training only.
IGNORED = ['mask_token', *transformers_rules.IGNORED]
