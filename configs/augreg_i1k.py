"""AugReg from scratch on ImageNet (arXiv:2106.10270).

    python -m vit_jax.main --config=configs/augreg_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :ti16, :s32, :s16, :b32, :b16, :l16, :r_vit_ti16, ...
    ... :b16,strong1        another level     ... :do0.1, :sd0.1, :wd0.03

300 epochs, batch 4,096, Adam with a bfloat16 first moment, 1e-3 cosine to 0,
10,000 warm-up steps, clip 1, weight decay 1e-4 by the schedule (the files'
wd_0.1), sigmoid loss with head bias -6.9. The level of augmentation is the
model's own: light1 for Ti/16, medium1 for S/32, medium2 for the others.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

LEVELS = {'ti16': 'light1', 's32': 'medium1'}


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='b16', options=('wd0.03', 'do0.1', 'sd0.1', *shared.AUGREG)
  )
  c = default_config()
  c.run.name = f'AugReg {model} on ImageNet'
  c.run.epochs = 300.0
  shared.imagenet(c)
  c.data.batch_size = 4096
  shared.augreg(c, model, switches, LEVELS.get(model, 'medium2'))
  c.model.head_bias = -6.9
  if 'smoke' in switches:
    shared.smoke(c, **shared.vit_smoke(c.model.name))
  return c
