"""Names of the released VOLO files; the official ones and timm's are the same.

A file numbers the elements of its network, groups of blocks and downsampling
convolutions, and the blocks inside a group; the model counts outlookers and
transformer blocks through. So the rules depend on the model's groups.
"""

from vit_jax.weights.rules import Rule

_BN = (
  ('params', 'scale', 'weight'),
  ('params', 'bias', 'bias'),
  ('batch_stats', 'mean', 'running_mean'),
  ('batch_stats', 'var', 'running_var'),
)


def _layer(flax: str, torch: str, layout: str = 'dense') -> list[Rule]:
  return [
    Rule(f'{flax}/kernel', f'{torch}.weight', layout),
    Rule(f'{flax}/bias', f'{torch}.bias'),
  ]


def _block(kind: str, flax: str, torch: str) -> list[Rule]:
  rules = _layer(f'{flax}/attn/out', f'{torch}.attn.proj')
  for i in (0, 1):
    rules += [
      Rule(f'{flax}/LayerNorm_{i}/scale', f'{torch}.norm{i + 1}.weight'),
      Rule(f'{flax}/LayerNorm_{i}/bias', f'{torch}.norm{i + 1}.bias'),
      *_layer(f'{flax}/mlp/Dense_{i}', f'{torch}.mlp.fc{i + 1}'),
    ]
  if kind == 'outlooker':
    return [
      *rules,
      *_layer(f'{flax}/attn/v', f'{torch}.attn.v'),
      *_layer(f'{flax}/attn/attn', f'{torch}.attn.attn'),
    ]
  fused = {
    'block': {
      'query': ('qkv', 0, 3),
      'key': ('qkv', 1, 3),
      'value': ('qkv', 2, 3),
    },
    'cls_block': {
      'query': ('q', 0, 1),
      'key': ('kv', 0, 2),
      'value': ('kv', 1, 2),
    },
  }[kind]
  for ours, (theirs, j, n) in fused.items():
    rules += [
      Rule(
        f'{flax}/attn/{ours}/kernel',
        f'{torch}.attn.{theirs}.weight',
        'dense',
        (j, n),
      ),
      Rule(
        f'{flax}/attn/{ours}/bias',
        f'{torch}.attn.{theirs}.bias',
        'same',
        (j, n),
      ),
    ]
  return rules


def rules(model) -> list[Rule]:
  """The rules for the groups of `model`, a `VOLO`."""
  result = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    *_layer('params/stem/proj', 'patch_embed.proj', 'conv'),
    Rule('params/encoder_norm/scale', 'norm.weight'),
    Rule('params/encoder_norm/bias', 'norm.bias'),
    *_layer('params/head', 'head'),
    *_layer('params/aux_head', 'aux_head'),
  ]
  for i in range(3):
    result.append(
      Rule(
        f'params/stem/conv_{i}/kernel',
        f'patch_embed.conv.{3 * i}.weight',
        'conv',
      )
    )
    result += [
      Rule(
        f'{collection}/stem/bn_{i}/{ours}',
        f'patch_embed.conv.{3 * i + 1}.{theirs}',
      )
      for collection, ours, theirs in _BN
    ]
  counts, element = {'outlooker': 0, 'block': 0, 'downsample': 0}, 0
  for g, count in enumerate(model.layers):
    kind = 'outlooker' if model.outlook_attention[g] else 'block'
    for j in range(count):
      result += _block(
        kind, f'params/{kind}_{counts[kind]}', f'network.{element}.{j}'
      )
      counts[kind] += 1
    element += 1
    if model.downsamples[g]:
      n = counts['downsample']
      result += _layer(
        f'params/downsample_{n}' if n else 'params/downsample',
        f'network.{element}.proj',
        'conv',
      )
      counts['downsample'] += 1
      element += 1
  for i in range(len(model.post_layers)):
    result += _block('cls_block', f'params/cls_block_{i}', f'post_network.{i}')
  return result


MAPS = {'VOLO': {'official': rules, 'timm': rules}}
IGNORED = [r'.*\.num_batches_tracked']
