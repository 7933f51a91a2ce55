"""Names of released ViT files, hybrids and area attention included.

'npz': the published Google files, written before Linen: sub-modules are
numbered by position, across classes. 'big_vision': Linen names, and the
position table, without a class-token row, at the top. 'timm': timm, DeiT and
DINOv2. 'official' (of models with area attention): the area-attention project.
Linen names as they are need no map.
"""

from vit_jax.weights.rules import Rule

_QKV = ('query', 'key', 'value')
_BLOCK = r'params/Transformer/encoderblock_(\d+)'
_STEM = r'params/block(\d+)/unit(\d+)'
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
  """Names of the ResNet stem; the root alone has no `stem.` in its name."""
  backbone = 'patch_embed.backbone'
  root = backbone if root_only else f'{backbone}.stem'

  def unit(rest):  # numbered from 0
    return lambda m: (
      f'{backbone}.stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.'
      + rest.format(*m.groups()[2:])
    )

  rules = [
    Rule('params/conv_root/kernel', f'{root}.conv.weight', 'conv'),
    Rule(rf'{_STEM}/conv(\d)/kernel', unit('conv{}.weight'), 'conv'),
    Rule(f'{_STEM}/conv_proj/kernel', unit('downsample.conv.weight'), 'conv'),
  ]
  for flax, torch in (('scale', 'weight'), ('bias', 'bias')):
    rules += [
      Rule(f'params/gn_root/{flax}', f'{root}.norm.{torch}'),
      Rule(rf'{_STEM}/gn(\d)/{flax}', unit(f'norm{{}}.{torch}')),
      Rule(f'{_STEM}/gn_proj/{flax}', unit(f'downsample.norm.{torch}')),
    ]
  return rules


def encoder_rules() -> list[Rule]:
  """timm names of the tokens, blocks and heads; DeiT has the same."""
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/Transformer/posembed_input/pos_embedding', 'pos_embed'),
    Rule('params/embedding/kernel', 'patch_embed.proj.weight', 'conv'),
    Rule('params/embedding/bias', 'patch_embed.proj.bias'),
    Rule(rf'{_BLOCK}/gamma_(\d)', r'blocks.\1.ls\2.gamma'),
    Rule(
      f'{_BLOCK}/MultiHeadDotProductAttention_0/out/kernel',
      r'blocks.\1.attn.proj.weight',
      'dense',
    ),
    Rule(
      f'{_BLOCK}/MultiHeadDotProductAttention_0/out/bias',
      r'blocks.\1.attn.proj.bias',
    ),
    Rule(r'params/(head\w*)/kernel', r'\1.weight', 'dense'),
    Rule(r'params/(head\w*)/bias', r'\1.bias'),
    Rule('params/pre_logits/kernel', 'pre_logits.fc.weight', 'dense'),
    Rule('params/pre_logits/bias', 'pre_logits.fc.bias'),
  ]
  for j, which in enumerate(_QKV):
    attention = f'{_BLOCK}/MultiHeadDotProductAttention_0/{which}'
    rules += [
      Rule(
        f'{attention}/kernel', r'blocks.\1.attn.qkv.weight', 'dense', (j, 3)
      ),
      Rule(f'{attention}/bias', r'blocks.\1.attn.qkv.bias', 'same', (j, 3)),
    ]
  for i in (0, 1):
    rules += [
      Rule(
        f'{_BLOCK}/MlpBlock_0/Dense_{i}/kernel',
        rf'blocks.\1.mlp.fc{i + 1}.weight',
        'dense',
      ),
      Rule(
        f'{_BLOCK}/MlpBlock_0/Dense_{i}/bias', rf'blocks.\1.mlp.fc{i + 1}.bias'
      ),
    ]
  for flax, torch in (('scale', 'weight'), ('bias', 'bias')):
    rules += [
      Rule(f'{_BLOCK}/LayerNorm_0/{flax}', rf'blocks.\1.norm1.{torch}'),
      Rule(f'{_BLOCK}/LayerNorm_1/{flax}', rf'blocks.\1.norm2.{torch}'),
      Rule(f'params/Transformer/encoder_norm/{flax}', f'norm.{torch}'),
      Rule(f'params/fc_norm/{flax}', f'fc_norm.{torch}'),
    ]
  return rules


def _timm_pool() -> list[Rule]:
  """timm's attention pooling (SigLIP), big_vision's MAP head."""
  attention = 'params/MAPHead_0/MultiHeadDotProductAttention_0'
  rules = [Rule('params/MAPHead_0/probe', 'attn_pool.latent')]
  for leaf, torch, layout in (
    ('kernel', 'weight', 'dense'),
    ('bias', 'bias', 'same'),
  ):
    mlp = 'params/MAPHead_0/MlpBlock_0'
    rules += [
      Rule(f'{attention}/query/{leaf}', f'attn_pool.q.{torch}', layout),
      Rule(f'{attention}/key/{leaf}', f'attn_pool.kv.{torch}', layout, (0, 2)),
      Rule(
        f'{attention}/value/{leaf}', f'attn_pool.kv.{torch}', layout, (1, 2)
      ),
      Rule(f'{attention}/out/{leaf}', f'attn_pool.proj.{torch}', layout),
      Rule(f'{mlp}/Dense_0/{leaf}', f'attn_pool.mlp.fc1.{torch}', layout),
      Rule(f'{mlp}/Dense_1/{leaf}', f'attn_pool.mlp.fc2.{torch}', layout),
    ]
  return [
    *rules,
    Rule('params/MAPHead_0/LayerNorm_0/scale', 'attn_pool.norm.weight'),
    Rule('params/MAPHead_0/LayerNorm_0/bias', 'attn_pool.norm.bias'),
  ]


def _timm(model) -> list[Rule]:
  stem = model.stem
  return (
    encoder_rules()
    + _timm_pool()
    + ([] if stem is None else _timm_stem(root_only=not stem))
  )


def _area(model) -> list[Rule]:
  """The area-attention project's names: two kinds of attention block."""
  count = len(model.area_sizes)
  layer = r'transformer.layers.\1'
  area = '|'.join(str(i) for i in range(count)) or '(?!)'
  rules = [
    Rule('params/embedding/kernel', 'patch_to_embedding.weight', 'dense'),
    Rule('params/embedding/bias', 'patch_to_embedding.bias'),
    Rule('params/cls', 'cls_token'),
    Rule('params/Transformer/posembed_input/pos_embedding', 'pos_embedding'),
    Rule('params/head/kernel', 'mlp_head.1.weight', 'dense'),
    Rule('params/head/bias', 'mlp_head.1.bias'),
  ]
  attention = 'MultiHeadDotProductAttention_0'
  for leaf, torch, layout in (
    ('kernel', 'weight', 'dense'),
    ('bias', 'bias', 'same'),
  ):
    in_area = rf'params/Transformer/encoderblock_({area})/{attention}'
    module = f'{layer}.0.fn.fn.multihead_area_attention'
    for j, which in enumerate(_QKV):
      rules += [
        Rule(
          f'{in_area}/{which}/{leaf}',
          f'{module}.{which}_projection.{torch}',
          layout,
        ),
        Rule(
          f'{_BLOCK}/{attention}/{which}/{leaf}',
          f'{layer}.0.fn.fn.to_qkv.{torch}',
          layout,
          (j, 3),
        ),
      ]
    rules += [
      Rule(
        f'{in_area}/out/{leaf}', f'{module}.output_projection.{torch}', layout
      ),
      Rule(
        f'{_BLOCK}/{attention}/out/{leaf}',
        f'{layer}.0.fn.fn.to_out.0.{torch}',
        layout,
      ),
      Rule(
        f'{_BLOCK}/MlpBlock_0/Dense_0/{leaf}',
        f'{layer}.1.fn.fn.net.0.{torch}',
        layout,
      ),
      Rule(
        f'{_BLOCK}/MlpBlock_0/Dense_1/{leaf}',
        f'{layer}.1.fn.fn.net.3.{torch}',
        layout,
      ),
    ]
  for flax, torch in (('scale', 'weight'), ('bias', 'bias')):
    rules += [
      Rule(f'{_BLOCK}/LayerNorm_0/{flax}', f'{layer}.0.fn.norm.{torch}'),
      Rule(f'{_BLOCK}/LayerNorm_1/{flax}', f'{layer}.1.fn.norm.{torch}'),
      Rule(f'params/Transformer/encoder_norm/{flax}', f'mlp_head.0.{torch}'),
    ]
  return rules


# A value may be a function of the model that gives the rules.
MAPS = {
  'ViT': {
    'npz': _npz(),
    'big_vision': _big_vision(),
    'timm': _timm,
    'official': _area,
  }
}
IGNORED = ['mask_token']  # DINOv2's, of pre-training only
