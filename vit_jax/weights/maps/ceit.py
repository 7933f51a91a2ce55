"""Names of CeiT files: the released ones and those of a reimplementation.

The formats: 'official' is that of coeusguo/ceit, whose files have the state
dict under `model`; 'rishikksh20' is that of rishikksh20/CeiT-pytorch. timm has
no CeiT.
"""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import attention, batch_norm, layer, mlp, norm

_BLOCK = r'block_(\d+)'


def _official() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    Rule('params/pos_layer_embedding', 'pos_layer_embed'),
    *layer('i2t/conv', 'i2t.backbone.conv', 'conv'),
    *batch_norm('i2t/bn', 'i2t.backbone.bn'),
    *layer('i2t/proj', 'i2t.proj', 'conv'),
    *norm('encoder_norm', 'norm'),
    *layer('head', 'head'),
    *mlp('lca/mlp', 'lca.feedforward'),
  ]
  for flax, torch in ((_BLOCK, r'blocks.\1'), ('lca', 'lca')):
    rules += [
      *norm(f'{flax}/LayerNorm_0', f'{torch}.norm1'),
      *norm(f'{flax}/LayerNorm_1', f'{torch}.norm2'),
      *attention(f'{flax}/attn', f'{torch}.attn.qkv', f'{torch}.attn.proj'),
    ]
  for i in (1, 2, 3):
    leff = r'blocks.\1.leff'
    rules += [
      *layer(f'{_BLOCK}/leff/conv{i}', f'{leff}.conv{i}', 'conv'),
      *batch_norm(f'{_BLOCK}/leff/bn{i}', f'{leff}.bn{i}'),
    ]
  return rules


def _rishikksh20() -> list[Rule]:
  torch = r'transformer.layers.\1'
  lca = 'LCA.layers.0'
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embedding'),
    *layer('i2t/conv', 'conv.0', 'conv'),
    *batch_norm('i2t/bn', 'conv.1'),
    # In the file, a dense layer of patches, flattened as (row, column,
    # channel).
    *layer('i2t/proj', 'to_patch_embedding.1'),
    *norm(f'{_BLOCK}/LayerNorm_0', f'{torch}.0.fn.norm'),
    *attention(
      f'{_BLOCK}/attn', f'{torch}.0.fn.fn.to_qkv', f'{torch}.0.fn.fn.to_out.0'
    ),
    *norm(f'{_BLOCK}/LayerNorm_1', f'{torch}.1.fn.norm'),
    *norm('lca/LayerNorm_0', f'{lca}.0.norm'),
    *attention('lca/attn', f'{lca}.0.fn.to_qkv', f'{lca}.0.fn.to_out.0'),
    *norm('lca/LayerNorm_1', f'{lca}.1.norm'),
    *layer('lca/mlp/Dense_0', f'{lca}.1.fn.net.0'),
    *layer('lca/mlp/Dense_1', f'{lca}.1.fn.net.3'),
    *norm('encoder_norm', 'mlp_head.0'),
    *layer('head', 'mlp_head.1'),
  ]
  for i, (convolution, layout, normalization) in enumerate(
    (
      ('up_proj.0', 'dense', 'up_proj.2'),
      ('depth_conv.0', 'conv', 'depth_conv.1'),
      ('down_proj.0', 'dense', 'down_proj.2'),
    ),
    start=1,
  ):
    leff = f'{torch}.1.fn.fn'
    rules += [
      *layer(f'{_BLOCK}/leff/conv{i}', f'{leff}.{convolution}', layout),
      *batch_norm(f'{_BLOCK}/leff/bn{i}', f'{leff}.{normalization}'),
    ]
  return rules


MAPS = {'CeiT': {'official': _official(), 'rishikksh20': _rishikksh20()}}
