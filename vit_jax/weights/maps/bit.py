"""Names of released BiT (ResNet-V2) files.

The formats: 'npz' is that of the published Google files, with the scopes of
TensorFlow; 'official' that of big_transfer's PyTorch model; 'timm' that of
timm's `resnetv2_*_bit`. There are no released files of the ResNet-V1 (`BiTV1`),
which has only the format 'flax'.
"""

from vit_jax.weights.rules import Rule

_UNIT = r'params/block(\d+)/unit(\d+)'
_CONV = 'standardized_conv2d/kernel'
_NORM = (('scale', 'gamma', 'weight'), ('bias', 'beta', 'bias'))


def _npz() -> list[Rule]:
  unit = r'resnet/block\1/unit\2'
  rules = [
    Rule('params/root_block/conv_root/kernel', f'resnet/root_block/{_CONV}'),
    Rule(f'{_UNIT}/conv_proj/kernel', f'{unit}/a/proj/{_CONV}'),
    Rule('params/head/kernel', 'resnet/head/conv2d/kernel', 'nd4'),
    Rule('params/head/bias', 'resnet/head/conv2d/bias'),
  ]
  for i, letter in enumerate('abc', start=1):
    rules.append(Rule(f'{_UNIT}/conv{i}/kernel', f'{unit}/{letter}/{_CONV}'))
    rules += [
      Rule(f'{_UNIT}/gn{i}/{flax}', f'{unit}/{letter}/group_norm/{tf}')
      for flax, tf, _ in _NORM
    ]
  rules += [
    Rule(f'params/norm-pre-head/{flax}', f'resnet/group_norm/{tf}')
    for flax, tf, _ in _NORM
  ]
  return rules


def _official() -> list[Rule]:
  unit = r'body.block\1.unit\2'
  rules = [
    Rule('params/root_block/conv_root/kernel', 'root.conv.weight', 'conv'),
    Rule(f'{_UNIT}/conv_proj/kernel', f'{unit}.downsample.weight', 'conv'),
    Rule(rf'{_UNIT}/conv(\d)/kernel', rf'{unit}.conv\3.weight', 'conv'),
    Rule('params/head/kernel', 'head.conv.weight', 'conv'),
    Rule('params/head/bias', 'head.conv.bias'),
  ]
  for flax, _, torch in _NORM:
    rules += [
      Rule(rf'{_UNIT}/gn(\d)/{flax}', rf'{unit}.gn\3.{torch}'),
      Rule(f'params/norm-pre-head/{flax}', f'head.gn.{torch}'),
    ]
  return rules


def _timm() -> list[Rule]:
  unit = 'stages.{1-1}.blocks.{2-1}'
  rules = [
    Rule('params/root_block/conv_root/kernel', 'stem.conv.weight', 'conv'),
    Rule(f'{_UNIT}/conv_proj/kernel', f'{unit}.downsample.conv.weight', 'conv'),
    Rule(rf'{_UNIT}/conv(\d)/kernel', rf'{unit}.conv\3.weight', 'conv'),
    Rule('params/head/kernel', 'head.fc.weight', 'conv'),
    Rule('params/head/bias', 'head.fc.bias'),
  ]
  for flax, _, torch in _NORM:
    rules += [
      Rule(rf'{_UNIT}/gn(\d)/{flax}', rf'{unit}.norm\3.{torch}'),
      Rule(f'params/norm-pre-head/{flax}', f'norm.{torch}'),
    ]
  return rules


MAPS = {'BiT': {'npz': _npz(), 'official': _official(), 'timm': _timm()}}
# Some files number convolutions and norms, as in 'standardized_conv2d_17'.
ALIASES = [(r'(standardized_conv2d|group_norm|conv2d)_\d+', r'\1')]
