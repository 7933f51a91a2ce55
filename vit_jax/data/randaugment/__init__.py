"""RandAugment (arXiv:1909.13719) as its two families of recipes define it.

  'google(2,15)'          (layers, magnitude): big_vision's, which trained the
                          AugReg ViTs and the Mixers (google.py)
  'rand-m9-mstd0.5-inc1'  timm's, which trained DeiT, CaiT, CeiT, VOLO and
                          DeepViT (timm.py)

The two share the names of operations, not their definitions.
"""

from vit_jax.data.randaugment.policy import parse as parse
