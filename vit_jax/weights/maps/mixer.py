"""Names of released MLP-Mixer files.

The formats: 'npz' is that of the published Google files, with Linen names;
'legacy' an older form of these files, with the four arrays of an MLP in one
scope; 'timm' that of timm.
"""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import layer, mlp, norm

_BLOCK = r'MixerBlock_(\d+)'
_MIXING = (('token_mixing', 'mlp_tokens'), ('channel_mixing', 'mlp_channels'))


def _legacy() -> list[Rule]:
  block = r'Mixer/encoderblock_\1'
  rules = [
    Rule('params/stem/(kernel|bias)', r'embedding/\1'),
    Rule('params/pre_head_layer_norm/(scale|bias)', r'Mixer/encoder_norm/\1'),
    Rule('params/head/(kernel|bias)', r'head/\1'),
    Rule(rf'params/{_BLOCK}/(LayerNorm_\d/.*)', rf'{block}/\2'),
  ]
  for flax, _ in _MIXING:
    rules += [
      Rule(
        rf'params/{_BLOCK}/{flax}/Dense_{i}/(kernel|bias)',
        rf'{block}/{flax}_phase_0/\g<2>{i + 1}',
      )
      for i in (0, 1)
    ]
  return rules


def _timm() -> list[Rule]:
  rules = [
    *layer('stem', 'stem.proj', 'conv'),
    *norm(f'{_BLOCK}/LayerNorm_0', r'blocks.\1.norm1'),
    *norm(f'{_BLOCK}/LayerNorm_1', r'blocks.\1.norm2'),
    *norm('pre_head_layer_norm', 'norm'),
    *layer('head', 'head'),
  ]
  for flax, torch in _MIXING:
    rules += mlp(f'{_BLOCK}/{flax}', rf'blocks.\1.{torch}')
  return rules


MAPS = {
  'Mixer': {
    'npz': [Rule('params/(.*)', r'\1')],
    'legacy': _legacy(),
    'timm': _timm(),
  }
}
# Some files number the submodules of a block by their position and not by
# class, so that the second norm is 'LayerNorm_2'.
ALIASES = [(r'(Mixer/encoderblock_\d+/LayerNorm)_2/(.*)', r'\1_1/\2')]
