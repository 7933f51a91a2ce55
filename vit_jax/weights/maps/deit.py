"""Names of released DeiT files with a distillation token.

The official files, with their state dict under `model`, and timm's have the
same names. Files of plain DeiTs have the names of ViT.
"""

from vit_jax.weights.maps.vit import encoder_rules
from vit_jax.weights.rules import Rule
from vit_jax.weights.transformers_rules import IGNORED, rules

_RULES = [Rule('params/dist_token', 'dist_token'), *encoder_rules()]
MAPS = {
  'DistilledViT': {
    'timm': _RULES,
    'official': _RULES,
    'transformers': rules(version=4, head='cls_classifier'),
    'transformers5': rules(version=5, head='cls_classifier'),
  }
}
# transformers has another name of the head for a model without the second one.
ALIASES = [(r'^classifier\.', 'cls_classifier.')]
__all__ = ['ALIASES', 'IGNORED', 'MAPS']
