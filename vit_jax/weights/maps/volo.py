"""Names of released VOLO files; the official ones and timm's are the same.

A file numbers the elements of its network, which are groups of blocks and
convolutions that halve the map, and the blocks inside each group. The model
numbers outlooker and transformer blocks over all groups. So the rules depend on
the groups of the model.
"""

from vit_jax.models.volo import VOLO
from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, fused, layer, mlp, norm


def _block(kind: str, flax: str, torch: str) -> list[Rule]:
  """The rules for one block.

  Args:
    kind: 'outlooker', 'block' or 'cls_block'.
    flax: Flax path of the block.
    torch: name of the block in the file.
  """
  attention = {
    'outlooker': [
      *layer(f'{flax}/attn/v', f'{torch}.attn.v'),
      *layer(f'{flax}/attn/attn', f'{torch}.attn.attn'),
    ],
    'block': fused(f'{flax}/attn', f'{torch}.attn.qkv'),
    'cls_block': [
      *layer(f'{flax}/attn/query', f'{torch}.attn.q'),
      *fused(f'{flax}/attn', f'{torch}.attn.kv', ('key', 'value')),
    ],
  }
  return [
    *attention[kind],
    *layer(f'{flax}/attn/out', f'{torch}.attn.proj'),
    *norm(f'{flax}/LayerNorm_0', f'{torch}.norm1'),
    *norm(f'{flax}/LayerNorm_1', f'{torch}.norm2'),
    *mlp(f'{flax}/mlp', f'{torch}.mlp'),
  ]


def _network(model: VOLO) -> list[Rule]:
  """The groups of blocks and the convolutions that halve the map."""
  rules: list[Rule] = []
  counts, element = {'outlooker': 0, 'block': 0, 'downsample': 0}, 0
  for group, blocks in enumerate(model.layers):
    kind = 'outlooker' if model.outlook_attention[group] else 'block'
    for j in range(blocks):
      rules += _block(kind, f'{kind}_{counts[kind]}', f'network.{element}.{j}')
      counts[kind] += 1
    element += 1
    if model.downsamples[group]:
      n = counts['downsample']
      flax = f'downsample_{n}' if n else 'downsample'
      rules += layer(flax, f'network.{element}.proj', 'conv')
      counts['downsample'] += 1
      element += 1
  return rules


def rules(model: VOLO) -> list[Rule]:
  """The rules for the groups of `model`."""
  result = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    *layer('stem/proj', 'patch_embed.proj', 'conv'),
    *norm('encoder_norm', 'norm'),
    *layer('head', 'head'),
    *layer('aux_head', 'aux_head'),
    *_network(model),
  ]
  for i in range(3):
    # The file's list has a BatchNorm and a ReLU after each convolution.
    result += [
      *layer(f'stem/conv_{i}', f'patch_embed.conv.{3 * i}', 'conv'),
      *batch_norm(f'stem/bn_{i}', f'patch_embed.conv.{3 * i + 1}'),
    ]
  for i in range(len(model.post_layers)):
    result += _block('cls_block', f'cls_block_{i}', f'post_network.{i}')
  return result


MAPS = {'VOLO': {'official': rules, 'timm': rules}}
