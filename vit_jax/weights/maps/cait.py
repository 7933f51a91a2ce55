"""Names of the released CaiT files; the official ones and timm's are the same.

Official files keep the state under `model`, with `module.` before every key.
"""

from vit_jax.weights.rules import Rule

_ATTN, _TALK, _CLS = (
  r'params/block_(\d+)',
  r'params/block_(\d+)/attn/(proj_[lw])',
  r'params/cls_block_(\d+)',
)
_STAGES = ((_ATTN, r'blocks.\1'), (_CLS, r'blocks_token_only.\1'))


def _rules() -> list[Rule]:
  rules = [
    Rule('params/cls', 'cls_token'),
    Rule('params/pos_embedding', 'pos_embed'),
    Rule('params/embedding/kernel', 'patch_embed.proj.weight', 'conv'),
    Rule('params/embedding/bias', 'patch_embed.proj.bias'),
    Rule(f'{_TALK}/kernel', r'blocks.\1.attn.\2.weight', 'dense'),
    Rule(f'{_TALK}/bias', r'blocks.\1.attn.\2.bias'),
    Rule('params/encoder_norm/scale', 'norm.weight'),
    Rule('params/encoder_norm/bias', 'norm.bias'),
    Rule('params/head/kernel', 'head.weight', 'dense'),
    Rule('params/head/bias', 'head.bias'),
  ]
  for j, which in enumerate(('query', 'key', 'value')):
    rules += [
      Rule(
        f'{_ATTN}/attn/{which}/kernel',
        r'blocks.\1.attn.qkv.weight',
        'dense',
        (j, 3),
      ),
      Rule(
        f'{_ATTN}/attn/{which}/bias', r'blocks.\1.attn.qkv.bias', 'same', (j, 3)
      ),
      Rule(
        f'{_CLS}/attn/{which}/kernel',
        rf'blocks_token_only.\1.attn.{which[0]}.weight',
        'dense',
      ),
      Rule(
        f'{_CLS}/attn/{which}/bias',
        rf'blocks_token_only.\1.attn.{which[0]}.bias',
      ),
    ]
  for flax, torch in _STAGES:
    rules += [
      Rule(rf'{flax}/gamma_(\d)', rf'{torch}.gamma_\2'),
      Rule(f'{flax}/attn/out/kernel', f'{torch}.attn.proj.weight', 'dense'),
      Rule(f'{flax}/attn/out/bias', f'{torch}.attn.proj.bias'),
    ]
    for i in (0, 1):
      rules += [
        Rule(f'{flax}/LayerNorm_{i}/scale', f'{torch}.norm{i + 1}.weight'),
        Rule(f'{flax}/LayerNorm_{i}/bias', f'{torch}.norm{i + 1}.bias'),
        Rule(
          f'{flax}/mlp/Dense_{i}/kernel',
          f'{torch}.mlp.fc{i + 1}.weight',
          'dense',
        ),
        Rule(f'{flax}/mlp/Dense_{i}/bias', f'{torch}.mlp.fc{i + 1}.bias'),
      ]
  return rules


MAPS = {'CaiT': {'official': _rules(), 'timm': _rules()}}
IGNORED: list[str] = []
