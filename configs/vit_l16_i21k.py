"""ViT-L/16 on ImageNet-21k: configs/vit_i21k.py with the model chosen.

    python -m vit_jax.main --config=configs/vit_l16_i21k.py \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/l16

Settings, cost and expected numbers: see configs/vit_i21k.py.
"""

from configs import vit_i21k


def get_config(arg=None):
  return vit_i21k.get_config(f'l16,{arg}' if arg else 'l16')
