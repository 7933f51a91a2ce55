"""Names of released DeiT files with a distillation token.

The official files (the state is under `model`) and timm's are the same. Plain
DeiT files are ViT's. 'npz' continues the naming of Google's ViT files, for
saving: no such file of a distilled DeiT was published.
"""

from vit_jax.weights.maps import vit
from vit_jax.weights.rules import Rule

_TIMM = [Rule('params/dist_token', 'dist_token'), *vit.encoder_rules()]
MAPS = {'DistilledViT': {'timm': _TIMM, 'official': _TIMM,
                         'npz': vit.MAPS['ViT']['npz']}}
IGNORED: list[str] = []
