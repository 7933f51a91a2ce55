"""AugReg from scratch on ImageNet (arXiv:2106.10270; big_vision's vit_i1k).

    python -m vit_jax.main --config=configs/augreg_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :ti16, :s32, :s16, :b32, :l16     the other models
    ... :b16,strong1                      another level of augmentation
    ... :do0.1, :sd0.1, :wd0.03           the regularization in the files' names

300 epochs, batch 4,096, Adam with a bfloat16 first moment, 1e-3 with a cosine
to 0, 10,000 warm-up steps, clip 1, weight decay 1e-4 times the schedule
('wd_0.1' in the names of the files; `wd0.03` is 3e-5), sigmoid loss with head
bias -6.9, a representation layer. The level of augmentation is big_vision's for
the model: light1 for Ti/16, medium1 for S/32, medium2 for the others. Hybrids
have none there, so a level must be named.

Cost in multiply-accumulates an image: B/16 17.6 G, S/16 4.6 G. Expected: about
79 for b16 with these settings (the authors, google-research/big_vision issue
7).
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

LEVELS = {
  'vit_ti16': 'light1',
  'vit_s32': 'medium1',
  'vit_s16': 'medium2',
  'vit_b32': 'medium2',
  'vit_b16': 'medium2',
  'vit_l16': 'medium2',
}


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='b16', options=shared.AUGREG_SWITCHES
  )
  c = default_config()
  c.run.name = f'AugReg {model} on ImageNet'
  c.run.epochs = 300.0
  shared.imagenet(c)
  c.data.batch_size = 4096
  shared.augreg(c, model, switches, LEVELS)
  c.model.head_bias = -6.9
  c.model.representation_size = shared.width(c.model.name)
  # big_vision adds its position table to the patches alone.
  c.model.class_posemb = False
  if 'smoke' in switches:
    shared.smoke(c, representation_size=32)
  return c
