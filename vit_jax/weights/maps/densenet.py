"""Names of DenseNet files; timm's and torchvision's are the same."""

from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer

_LAYER = r'block(\d+)/layer(\d+)'
_TORCH = r'features.denseblock\1.denselayer\2'
_RULES: list[Rule] = [
  *layer('conv_root', 'features.conv0', 'conv'),
  *batch_norm('norm_root', 'features.norm0'),
  *layer(rf'{_LAYER}/conv(\d)', rf'{_TORCH}.conv\3', 'conv'),
  *batch_norm(rf'{_LAYER}/norm(\d)', rf'{_TORCH}.norm\3'),
  *layer(r'transition(\d+)/conv', r'features.transition\1.conv', 'conv'),
  *batch_norm(r'transition(\d+)/norm', r'features.transition\1.norm'),
  *batch_norm('norm_final', 'features.norm5'),
  *layer('head', 'classifier'),
]
MAPS = {'DenseNet': {'timm': _RULES}}
# torchvision's first files have 'denselayer1.norm.1', later ones
# 'denselayer1.norm1'.
ALIASES = [(r'(.*denselayer\d+\.(?:norm|conv))\.(\d)\.(.*)', r'\1\2.\3')]
