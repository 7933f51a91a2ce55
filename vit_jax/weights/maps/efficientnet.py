"""Names of EfficientNet files: timm's and torchvision's.

timm's files include Google's weights. Both formats number the layers of a
block, and a block without an expanding convolution has fewer layers. So the
rules depend on which stages of the model expand.
"""

from vit_jax.models.efficientnet import EfficientNet
from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer


def _units(model: EfficientNet, expanding: bool) -> str:
  """Regex for the Flax paths of units with or without expanding convolution."""
  numbers = '|'.join(
    str(s)
    for s, (_, _, _, expansion, _) in enumerate(model.stages, start=1)
    if (expansion != 1) == expanding
  )
  return rf'block({numbers or "(?!)"})/unit(\d+)'


def _timm(model: EfficientNet) -> list[Rule]:
  torch = 'blocks.{1-1}.{2-1}'
  any_unit = r'block(\d+)/unit(\d+)'
  plain, full = _units(model, False), _units(model, True)
  return [
    *layer('conv_root', 'conv_stem', 'conv'),
    *batch_norm('norm_root', 'bn1'),
    *layer(f'{any_unit}/expand', f'{torch}.conv_pw', 'conv'),
    *batch_norm(f'{any_unit}/norm_expand', f'{torch}.bn1'),
    *layer(f'{any_unit}/depthwise', f'{torch}.conv_dw', 'conv'),
    *batch_norm(f'{plain}/norm_depthwise', f'{torch}.bn1'),
    *batch_norm(f'{full}/norm_depthwise', f'{torch}.bn2'),
    *layer(f'{any_unit}/se/reduce', f'{torch}.se.conv_reduce', 'dense4'),
    *layer(f'{any_unit}/se/expand', f'{torch}.se.conv_expand', 'dense4'),
    *layer(f'{plain}/project', f'{torch}.conv_pw', 'conv'),
    *batch_norm(f'{plain}/norm_project', f'{torch}.bn2'),
    *layer(f'{full}/project', f'{torch}.conv_pwl', 'conv'),
    *batch_norm(f'{full}/norm_project', f'{torch}.bn3'),
    *layer('conv_head', 'conv_head', 'conv'),
    *batch_norm('norm_head', 'bn2'),
    *layer('head', 'classifier'),
  ]


def _torchvision(model: EfficientNet) -> list[Rule]:
  last = len(model.stages) + 1
  rules = [
    *layer('conv_root', 'features.0.0', 'conv'),
    *batch_norm('norm_root', 'features.0.1'),
    *layer('conv_head', f'features.{last}.0', 'conv'),
    *batch_norm('norm_head', f'features.{last}.1'),
    *layer('head', 'classifier.1'),
  ]
  for expanding in (False, True):
    flax, first = _units(model, expanding), int(expanding)
    torch = r'features.\1.{2-1}.block'
    rules += [
      *layer(f'{flax}/expand', f'{torch}.0.0', 'conv'),
      *batch_norm(f'{flax}/norm_expand', f'{torch}.0.1'),
      *layer(f'{flax}/depthwise', f'{torch}.{first}.0', 'conv'),
      *batch_norm(f'{flax}/norm_depthwise', f'{torch}.{first}.1'),
      *layer(f'{flax}/se/reduce', f'{torch}.{first + 1}.fc1', 'dense4'),
      *layer(f'{flax}/se/expand', f'{torch}.{first + 1}.fc2', 'dense4'),
      *layer(f'{flax}/project', f'{torch}.{first + 2}.0', 'conv'),
      *batch_norm(f'{flax}/norm_project', f'{torch}.{first + 2}.1'),
    ]
  return rules


MAPS = {'EfficientNet': {'timm': _timm, 'torchvision': _torchvision}}
