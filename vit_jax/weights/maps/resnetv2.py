"""Names of timm's ResNet-V2 files."""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer

_UNIT, _TORCH = r'block(\d+)/unit(\d+)', 'stages.{1-1}.blocks.{2-1}'
_RULES: list[Rule] = [
  *layer('conv_root', 'stem.conv', 'conv'),
  *layer(r'conv_root(\d)', r'stem.conv\1', 'conv'),
  *batch_norm(r'norm_root(\d)', r'stem.norm\1'),
  *layer(rf'{_UNIT}/conv(\d)', rf'{_TORCH}.conv\3', 'conv'),
  *batch_norm(rf'{_UNIT}/norm(\d)', rf'{_TORCH}.norm\3'),
  *layer(f'{_UNIT}/conv_proj', f'{_TORCH}.downsample.conv', 'conv'),
  *batch_norm('norm_head', 'norm'),
  *layer('head', 'head.fc', 'conv'),
]
MAPS = {'ResNetV2': {'timm': _RULES}}
