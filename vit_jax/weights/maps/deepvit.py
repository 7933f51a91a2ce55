"""Names of the released DeepViT files. timm has no DeepViT."""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import attention, batch_norm, layer, mlp, norm

_BLOCK, _TORCH = r'block_(\d+)', r'blocks.\1'


def _rules() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    # The patch embedding, or the last layer of a convolutional patch embedding.
    *layer('(?:embedding|patch_embed/proj)', 'patch_embed.proj', 'conv'),
    *attention(f'{_BLOCK}/attn', f'{_TORCH}.attn.qkv', f'{_TORCH}.attn.proj'),
    # A matrix over the heads, which the file has as a 1x1 convolution.
    *layer(f'{_BLOCK}/attn/reattn', f'{_TORCH}.attn.reatten_matrix', 'conv'),
    *batch_norm(f'{_BLOCK}/attn/reattn_norm', f'{_TORCH}.attn.var_norm'),
    *norm(f'{_BLOCK}/LayerNorm_0', f'{_TORCH}.norm1'),
    *norm(f'{_BLOCK}/LayerNorm_1', f'{_TORCH}.norm2'),
    *mlp(f'{_BLOCK}/mlp', f'{_TORCH}.mlp'),
    *norm('encoder_norm', 'norm'),
    *layer('head', 'head'),
  ]
  for i in (0, 1):
    rules += [
      *layer(f'patch_embed/conv_{i}', f'patch_embed.conv{i + 1}', 'conv'),
      *batch_norm(f'patch_embed/bn_{i}', f'patch_embed.bn{i + 1}'),
    ]
  return rules


MAPS = {'DeepViT': {'official': _rules()}}
