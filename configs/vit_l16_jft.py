"""ViT-L/16 on JFT: configs/vit_jft.py with the model chosen.

    python -m vit_jax.main --config=configs/vit_l16_jft.py \
        --config.data.dir=gs://BUCKET/jft --workdir=gs://BUCKET/l16

Settings, cost and expected numbers: see configs/vit_jft.py.
"""

from configs import vit_jft


def get_config(arg=None):
  return vit_jft.get_config(f'l16,{arg}' if arg else 'l16')
