"""Names of CeiT files: the released ones and those of a reimplementation.

'official' is coeusguo/ceit, whose files keep the state under `model`;
'rishikksh20' is rishikksh20/CeiT-pytorch. Not in timm.
"""

from vit_jax.weights.rules import Rule

_BLOCK = r'params/block_(\d+)'
_BN = (
  ('params', 'scale', 'weight'),
  ('params', 'bias', 'bias'),
  ('batch_stats', 'mean', 'running_mean'),
  ('batch_stats', 'var', 'running_var'),
)


def _norm(flax: str, torch: str) -> list[Rule]:
  return [
    Rule(f'{flax}/scale', f'{torch}.weight'),
    Rule(f'{flax}/bias', f'{torch}.bias'),
  ]


def _batch_norm(flax: str, torch: str) -> list[Rule]:
  return [
    Rule(f'{collection}/{flax}/{ours}', f'{torch}.{theirs}')
    for collection, ours, theirs in _BN
  ]


def _layer(flax: str, torch: str, layout: str = 'dense') -> list[Rule]:
  return [
    Rule(f'{flax}/kernel', f'{torch}.weight', layout),
    Rule(f'{flax}/bias', f'{torch}.bias'),
  ]


def _attention(flax: str, qkv: str, out: str) -> list[Rule]:
  rules = _layer(f'{flax}/out', out)
  for j, which in enumerate(('query', 'key', 'value')):
    rules += [
      Rule(f'{flax}/{which}/kernel', f'{qkv}.weight', 'dense', (j, 3)),
      Rule(f'{flax}/{which}/bias', f'{qkv}.bias', 'same', (j, 3)),
    ]
  return rules


def _official() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    Rule('params/pos_layer_embedding', 'pos_layer_embed'),
    *_layer('params/i2t/conv', 'i2t.backbone.conv', 'conv'),
    *_batch_norm('i2t/bn', 'i2t.backbone.bn'),
    *_layer('params/i2t/proj', 'i2t.proj', 'conv'),
    *_norm('params/encoder_norm', 'norm'),
    *_layer('params/head', 'head'),
  ]
  for flax, torch in ((_BLOCK, r'blocks.\1'), ('params/lca', 'lca')):
    rules += [
      *_norm(f'{flax}/LayerNorm_0', f'{torch}.norm1'),
      *_norm(f'{flax}/LayerNorm_1', f'{torch}.norm2'),
      *_attention(f'{flax}/attn', f'{torch}.attn.qkv', f'{torch}.attn.proj'),
    ]
  for i in (1, 2, 3):
    rules += _layer(
      f'{_BLOCK}/leff/conv{i}', rf'blocks.\1.leff.conv{i}', 'conv'
    )
    rules += _batch_norm(rf'block_(\d+)/leff/bn{i}', rf'blocks.\1.leff.bn{i}')
  for i in (0, 1):
    rules += _layer(f'params/lca/mlp/Dense_{i}', f'lca.feedforward.fc{i + 1}')
  return rules


def _rishikksh20() -> list[Rule]:
  layer = r'transformer.layers.\1'
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embedding'),
    *_layer('params/i2t/conv', 'conv.0', 'conv'),
    *_batch_norm('i2t/bn', 'conv.1'),
    # A linear map of patches that are cut out as (row, column, channel).
    *_layer('params/i2t/proj', 'to_patch_embedding.1'),
    *_norm(f'{_BLOCK}/LayerNorm_0', f'{layer}.0.fn.norm'),
    *_attention(
      f'{_BLOCK}/attn', f'{layer}.0.fn.fn.to_qkv', f'{layer}.0.fn.fn.to_out.0'
    ),
    *_norm(f'{_BLOCK}/LayerNorm_1', f'{layer}.1.fn.norm'),
    *_norm('params/lca/LayerNorm_0', 'LCA.layers.0.0.norm'),
    *_attention(
      'params/lca/attn',
      'LCA.layers.0.0.fn.to_qkv',
      'LCA.layers.0.0.fn.to_out.0',
    ),
    *_norm('params/lca/LayerNorm_1', 'LCA.layers.0.1.norm'),
    *_layer('params/lca/mlp/Dense_0', 'LCA.layers.0.1.fn.net.0'),
    *_layer('params/lca/mlp/Dense_1', 'LCA.layers.0.1.fn.net.3'),
    *_norm('params/encoder_norm', 'mlp_head.0'),
    *_layer('params/head', 'mlp_head.1'),
  ]
  for i, (linear, norm, layout) in enumerate(
    (
      ('up_proj.0', 'up_proj.2', 'dense'),
      ('depth_conv.0', 'depth_conv.1', 'conv'),
      ('down_proj.0', 'down_proj.2', 'dense'),
    ),
    start=1,
  ):
    rules += _layer(
      f'{_BLOCK}/leff/conv{i}', f'{layer}.1.fn.fn.{linear}', layout
    )
    rules += _batch_norm(rf'block_(\d+)/leff/bn{i}', f'{layer}.1.fn.fn.{norm}')
  return rules


MAPS = {'CeiT': {'official': _official(), 'rishikksh20': _rishikksh20()}}
IGNORED = [r'.*\.num_batches_tracked']
