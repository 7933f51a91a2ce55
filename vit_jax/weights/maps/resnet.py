"""Names of ResNet files; timm's and torchvision's are the same."""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer

_UNIT, _TORCH = r'block(\d+)/unit(\d+)', r'layer\1.{2-1}'
_RULES: list[Rule] = [
  *layer('conv_root', 'conv1', 'conv'),
  *batch_norm('norm_root', 'bn1'),
  *layer(rf'{_UNIT}/conv(\d)', rf'{_TORCH}.conv\3', 'conv'),
  *batch_norm(rf'{_UNIT}/norm(\d)', rf'{_TORCH}.bn\3'),
  *layer(f'{_UNIT}/conv_proj', f'{_TORCH}.downsample.0', 'conv'),
  *batch_norm(f'{_UNIT}/norm_proj', f'{_TORCH}.downsample.1'),
  *layer('head', 'fc'),
]
MAPS = {'ResNet': {'timm': _RULES}}
