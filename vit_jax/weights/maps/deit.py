"""Names of released DeiT files with a distillation token.

The official files (the state is under `model`) and timm's are the same. Plain
DeiT files are ViT's.
"""

from vit_jax.weights.maps.vit import encoder_rules
from vit_jax.weights.rules import Rule

_RULES = [Rule('params/dist_token', 'dist_token'), *encoder_rules()]
MAPS = {'DistilledViT': {'timm': _RULES, 'official': _RULES}}
IGNORED: list[str] = []
