"""Names of released MLP-Mixer files.

'npz': the published Google files, Linen names. 'legacy': an older layout of
them, with the four arrays of an MLP in one scope. 'timm': timm's.
"""

from vit_jax.weights.rules import Rule

_BLOCK = r'params/MixerBlock_(\d+)'
_MIXING = (('token_mixing', 'mlp_tokens'), ('channel_mixing', 'mlp_channels'))


def _legacy() -> list[Rule]:
  block = r'Mixer/encoderblock_\1'
  rules = [
    Rule('params/stem/(kernel|bias)', r'embedding/\1'),
    Rule('params/pre_head_layer_norm/(scale|bias)', r'Mixer/encoder_norm/\1'),
    Rule('params/head/(kernel|bias)', r'head/\1'),
    Rule(rf'{_BLOCK}/(LayerNorm_\d/.*)', rf'{block}/\2'),
  ]
  for flax, _ in _MIXING:
    rules += [
      Rule(
        rf'{_BLOCK}/{flax}/Dense_{i}/(kernel|bias)',
        rf'{block}/{flax}_phase_0/\g<2>{i + 1}',
      )
      for i in (0, 1)
    ]
  return rules


def _timm() -> list[Rule]:
  rules = [
    Rule('params/stem/kernel', 'stem.proj.weight', 'conv'),
    Rule('params/stem/bias', 'stem.proj.bias'),
    Rule('params/head/kernel', 'head.weight', 'dense'),
    Rule('params/head/bias', 'head.bias'),
  ]
  for flax, torch in _MIXING:
    for i in (0, 1):
      dense = rf'blocks.\1.{torch}.fc{i + 1}'
      rules += [
        Rule(f'{_BLOCK}/{flax}/Dense_{i}/kernel', f'{dense}.weight', 'dense'),
        Rule(f'{_BLOCK}/{flax}/Dense_{i}/bias', f'{dense}.bias'),
      ]
  for flax, torch in (('scale', 'weight'), ('bias', 'bias')):
    rules += [
      Rule(f'{_BLOCK}/LayerNorm_0/{flax}', rf'blocks.\1.norm1.{torch}'),
      Rule(f'{_BLOCK}/LayerNorm_1/{flax}', rf'blocks.\1.norm2.{torch}'),
      Rule(f'params/pre_head_layer_norm/{flax}', f'norm.{torch}'),
    ]
  return rules


MAPS = {
  'Mixer': {
    'npz': [Rule('params/(.*)', r'\1')],
    'legacy': _legacy(),
    'timm': _timm(),
  }
}
IGNORED: list[str] = []
# Numbered by position, as in the first ViT files, the second norm is the third
# sub-module.
ALIASES = [(r'(Mixer/encoderblock_\d+/LayerNorm)_2/(.*)', r'\1_1/\2')]
