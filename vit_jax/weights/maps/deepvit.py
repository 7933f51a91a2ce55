"""Names of the released DeepViT files (not in timm)."""

from vit_jax.weights.rules import Rule

_BLOCK = r'params/block_(\d+)'
_BN = (
  ('params', 'scale', 'weight'),
  ('params', 'bias', 'bias'),
  ('batch_stats', 'mean', 'running_mean'),
  ('batch_stats', 'var', 'running_var'),
)


def _rules() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    # One convolution, or the last of the convolutional embedding.
    Rule(
      'params/(embedding|patch_embed/proj)/kernel',
      'patch_embed.proj.weight',
      'conv',
    ),
    Rule('params/(embedding|patch_embed/proj)/bias', 'patch_embed.proj.bias'),
    Rule(
      f'{_BLOCK}/attn/reattn/kernel',
      r'blocks.\1.attn.reatten_matrix.weight',
      'conv',
    ),  # 1x1
    Rule(f'{_BLOCK}/attn/reattn/bias', r'blocks.\1.attn.reatten_matrix.bias'),
    Rule(f'{_BLOCK}/attn/out/kernel', r'blocks.\1.attn.proj.weight', 'dense'),
    Rule(f'{_BLOCK}/attn/out/bias', r'blocks.\1.attn.proj.bias'),
    Rule('params/encoder_norm/scale', 'norm.weight'),
    Rule('params/encoder_norm/bias', 'norm.bias'),
    Rule('params/head/kernel', 'head.weight', 'dense'),
    Rule('params/head/bias', 'head.bias'),
  ]
  for j, which in enumerate(('query', 'key', 'value')):
    rules += [
      Rule(
        f'{_BLOCK}/attn/{which}/kernel',
        r'blocks.\1.attn.qkv.weight',
        'dense',
        (j, 3),
      ),
      Rule(
        f'{_BLOCK}/attn/{which}/bias',
        r'blocks.\1.attn.qkv.bias',
        'same',
        (j, 3),
      ),
    ]
  for i in (0, 1):
    rules += [
      Rule(
        f'params/patch_embed/conv_{i}/kernel',
        f'patch_embed.conv{i + 1}.weight',
        'conv',
      ),
      Rule(f'{_BLOCK}/LayerNorm_{i}/scale', rf'blocks.\1.norm{i + 1}.weight'),
      Rule(f'{_BLOCK}/LayerNorm_{i}/bias', rf'blocks.\1.norm{i + 1}.bias'),
      Rule(
        f'{_BLOCK}/mlp/Dense_{i}/kernel',
        rf'blocks.\1.mlp.fc{i + 1}.weight',
        'dense',
      ),
      Rule(f'{_BLOCK}/mlp/Dense_{i}/bias', rf'blocks.\1.mlp.fc{i + 1}.bias'),
    ]
  for collection, flax, torch in _BN:
    rules += [
      Rule(
        rf'{collection}/block_(\d+)/attn/reattn_norm/{flax}',
        rf'blocks.\1.attn.var_norm.{torch}',
      ),
      Rule(f'{collection}/patch_embed/bn_0/{flax}', f'patch_embed.bn1.{torch}'),
      Rule(f'{collection}/patch_embed/bn_1/{flax}', f'patch_embed.bn2.{torch}'),
    ]
  return rules


MAPS = {'DeepViT': {'official': _rules()}}
IGNORED = [r'.*\.num_batches_tracked']
