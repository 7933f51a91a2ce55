"""Names of RegNetY files: timm's and torchvision's.

timm's names are also those of DeiT's teacher and of the files from pycls.
"""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer

_UNIT = r'block(\d+)/unit(\d+)'


def _timm() -> list[Rule]:
  torch = r's\1.b\2'
  return [
    *layer('conv_root', 'stem.conv', 'conv'),
    *batch_norm('norm_root', 'stem.bn'),
    *layer(rf'{_UNIT}/conv(\d)', rf'{torch}.conv\3.conv', 'conv'),
    *batch_norm(rf'{_UNIT}/norm(\d)', rf'{torch}.conv\3.bn'),
    *layer(f'{_UNIT}/se/reduce', f'{torch}.se.fc1', 'dense4'),
    *layer(f'{_UNIT}/se/expand', f'{torch}.se.fc2', 'dense4'),
    *layer(f'{_UNIT}/conv_proj', f'{torch}.downsample.conv', 'conv'),
    *batch_norm(f'{_UNIT}/norm_proj', f'{torch}.downsample.bn'),
    *layer('head', 'head.fc'),
  ]


def _torchvision() -> list[Rule]:
  torch = r'trunk_output.block\1.block\1-{2-1}'
  rules = [
    *layer('conv_root', 'stem.0', 'conv'),
    *batch_norm('norm_root', 'stem.1'),
    *layer(f'{_UNIT}/se/reduce', f'{torch}.f.se.fc1', 'dense4'),
    *layer(f'{_UNIT}/se/expand', f'{torch}.f.se.fc2', 'dense4'),
    *layer(f'{_UNIT}/conv_proj', f'{torch}.proj.0', 'conv'),
    *batch_norm(f'{_UNIT}/norm_proj', f'{torch}.proj.1'),
    *layer('head', 'fc'),
  ]
  for i, letter in enumerate('abc', start=1):
    rules += [
      *layer(f'{_UNIT}/conv{i}', f'{torch}.f.{letter}.0', 'conv'),
      *batch_norm(f'{_UNIT}/norm{i}', f'{torch}.f.{letter}.1'),
    ]
  return rules


MAPS = {'RegNetY': {'timm': _timm(), 'torchvision': _torchvision()}}
