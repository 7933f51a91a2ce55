"""Names of VGG files: timm's and torchvision's.

Both number the convolutions, norms, activations and pools in one list, so the
rules depend on the stages of the model. The dense layers differ: timm has
convolutions of 7x7 and 1x1, torchvision has matrices, the first of which takes
the map flattened as (channel, row, column).
"""

from vit_jax.models.vgg import VGG
from vit_jax.weights.rules import Rule
from vit_jax.weights.torch_rules import batch_norm, layer


def _features(model: VGG) -> list[Rule]:
  """The convolutions and norms; `position` counts the entries of the list."""
  rules: list[Rule] = []
  position = number = 0
  for stage in model.stages:
    for _ in stage:
      number += 1
      rules += layer(f'conv{number}', f'features.{position}', 'conv')
      if model.batch_norm:
        rules += batch_norm(f'norm{number}', f'features.{position + 1}')
      position += 3 if model.batch_norm else 2  # the last is the ReLU
    position += 1  # the max-pool
  return rules


def _timm(model: VGG) -> list[Rule]:
  return [
    *_features(model),
    *layer('fc1', 'pre_logits.fc1', 'conv'),
    *layer('fc2', 'pre_logits.fc2', 'dense4'),
    *layer('head', 'head.fc'),
  ]


def _torchvision(model: VGG) -> list[Rule]:
  return [
    *_features(model),
    *layer('fc1', 'classifier.0', 'flat_conv'),
    *layer('fc2', 'classifier.3'),
    *layer('head', 'classifier.6'),
  ]


MAPS = {'VGG': {'timm': _timm, 'torchvision': _torchvision}}
