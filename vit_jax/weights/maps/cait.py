"""Names of released CaiT files; the official ones and timm's are the same.

Official files have the state dict under `model`, and `module.` before every
name.
"""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import fused, layer, mlp, norm

_BLOCK, _CLS_BLOCK = r'block_(\d+)', r'cls_block_(\d+)'


def _rules() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    *layer('embedding', 'patch_embed.proj', 'conv'),
    *fused(f'{_BLOCK}/attn', r'blocks.\1.attn.qkv'),
    *layer(f'{_BLOCK}/attn/(proj_[lw])', r'blocks.\1.attn.\2'),
    *norm('encoder_norm', 'norm'),
    *layer('head', 'head'),
  ]
  for projection in ('query', 'key', 'value'):
    rules += layer(
      f'{_CLS_BLOCK}/attn/{projection}',
      rf'blocks_token_only.\1.attn.{projection[0]}',
    )
  for flax, torch in (
    (_BLOCK, r'blocks.\1'),
    (_CLS_BLOCK, r'blocks_token_only.\1'),
  ):
    rules += [
      Rule(rf'params/{flax}/gamma_(\d)', rf'{torch}.gamma_\2'),
      *layer(f'{flax}/attn/out', f'{torch}.attn.proj'),
      *norm(f'{flax}/LayerNorm_0', f'{torch}.norm1'),
      *norm(f'{flax}/LayerNorm_1', f'{torch}.norm2'),
      *mlp(f'{flax}/mlp', f'{torch}.mlp'),
    ]
  return rules


MAPS = {'CaiT': {'official': _rules(), 'timm': _rules()}}
