"""Names of released DeiT files with a distillation token.

The official files, with their state dict under `model`, and timm's have the
same names. Files of plain DeiTs have the names of ViT.
"""

from vit_jax.weights.maps.vit import encoder_rules
from vit_jax.weights.rules import Rule

_RULES = [Rule('params/dist_token', 'dist_token'), *encoder_rules()]
MAPS = {'DistilledViT': {'timm': _RULES, 'official': _RULES}}
