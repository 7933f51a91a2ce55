"""ViT-H/14 on JFT: configs/vit_jft.py with the model chosen.

    python -m vit_jax.main --config=configs/vit_h14_jft.py \
        --config.data.dir=gs://BUCKET/jft --workdir=gs://BUCKET/h14

Settings, cost and expected numbers: see configs/vit_jft.py.
"""

from configs import vit_jft


def get_config(arg=None):
  return vit_jft.get_config(f'h14,{arg}' if arg else 'h14')
