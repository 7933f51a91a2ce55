"""AugReg pre-training on ImageNet-21k (arXiv:2106.10270).

    python -m vit_jax.main --config=configs/augreg_i21k.py:b16 \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/b16
    ... :l16,medium2                another level of augmentation
    ... :do0.1, :sd0.1, :wd0.03     dropout, drop path, weight decay

300 epochs, batch 4,096, Adam with a bfloat16 first moment, 1e-3 with a cosine
to 0, 10,000 warm-up steps, clip 1, weight decay 1e-4 times the schedule
('wd_0.1' in the names of the files; `wd0.03` is 3e-5), sigmoid loss with head
bias -10, class token. The default level, dropout, drop path and weight decay
are those of the recommended file of the model (README of
google-research/vision_transformer). Expected on ImageNet after
configs/augreg_finetune.py at 384 px, 20,000 steps:

    model        level    weight decay  dropout, drop path   top-1
    ti16         none     0.03          0                    78.22
    s32          none     0.1           0                    79.58
    s16          light1   0.03          0                    83.73
    b32          light1   0.1           0                    83.59
    b16          medium1  0.1           0                    85.49
    b8           medium2  0.1           0                    85.58 (at 224 px)
    l16          strong1  0.1           0                    85.59
    r_vit_ti16   none     0.03          0                    75.40
    r26_vit_s32  light1   0.1           0                    83.85
    r50_vit_l32  medium1  0.1           0.1                  85.99

The files' names have levels light0 and light1, big_vision's code has light1 and
light2, so 'light1' of a file is probably light2 of the code, RandAugment (2,
10) with mixup 0.2; nothing published settles it. `big_vision` takes the levels
of its vit_i21k config (ti16 and s32 none, s16 light1, b32 and b16 light2, l16
medium2), its mean pooling, and weight decay 0.1 for all; the files have a class
token.

Cost in multiply-accumulates an image: B/16 17.6 G, L/16 61.6 G, R50+L/32 19.4
G.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

BIG_VISION = {
  'vit_ti16': 'none',
  'vit_s32': 'none',
  'vit_s16': 'light1',
  'vit_b32': 'light2',
  'vit_b16': 'light2',
  'vit_l16': 'medium2',
}
LEVELS = {
  'vit_ti16': 'none',
  'vit_s32': 'none',
  'vit_s16': 'light1',
  'vit_b32': 'light1',
  'vit_b16': 'medium1',
  'vit_b8': 'medium2',
  'vit_l16': 'strong1',
  'r_vit_ti16': 'none',
  'r26_vit_s32': 'light1',
  'r50_vit_l32': 'medium1',
}
# Regularization of the recommended files where it is not wd_0.1-do_0.0-sd_0.0.
REGULARIZATION = {
  'vit_ti16': ('wd0.03',),
  'vit_s16': ('wd0.03',),
  'r_vit_ti16': ('wd0.03',),
  'r50_vit_l32': ('do0.1', 'sd0.1'),
}


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg,
    model='b16',
    options=(*shared.AUGREG_SWITCHES, 'wd0.1', 'do0', 'sd0', 'big_vision'),
  )
  c = default_config()
  c.run.name = f'AugReg {model} on ImageNet-21k'
  c.run.epochs = 300.0
  c.data.source = 'packed'
  c.data.num_classes = 21_843
  c.data.batch_size = 4096
  name = shared.full_name(model)
  if 'big_vision' in switches:
    shared.augreg(c, name, switches, BIG_VISION)
    c.model.pool = 'gap'
  else:
    published = {
      s
      for s in REGULARIZATION.get(name, ())
      if not switches & {'wd0.1' if s == 'wd0.03' else s[:2] + '0'}
    }
    shared.augreg(c, name, switches | published, LEVELS)
  c.model.head_bias = -10.0
  c.mesh.preset = 'zero'
  c.eval.every_epochs = 10.0
  shared.big_vision_images(c)
  c.log.checkpoint_minutes = 20.0
  if 'smoke' in switches:
    shared.smoke(c)
  return c
