"""ViT from scratch on ImageNet as in the paper (arXiv:2010.11929, table 3).

    python -m vit_jax.main --config=configs/vit_b16_i1k.py \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :b32, :l16, :l32     the other sizes      ... :l16,warm3.4

AdamW 3e-3, weight decay 0.3, cosine, batch 4,096, 300 epochs, dropout 0.1,
clip 1, warm-up 10,000 steps (`warm3.4` for the 3.4 epochs of AugReg's table 9:
the two sources disagree, 32 against 3.4 epochs).

Expected at 384 px: B/16 77.91, B/32 73.38, L/16 76.53, L/32 71.16. A plain
ViT needs more regularisation at this size of data: configs/augreg_i1k.py and
configs/vit_s16_i1k.py are the better ways.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='b16', options=('warm3.4',))
  c = default_config()
  c.run.name = f'ViT {model} on ImageNet'
  c.run.epochs = 300.0
  shared.imagenet(c)
  c.data.batch_size = 4096
  c.model.update(name=f'vit_{model}', dropout=0.1)
  c.optim.lr, c.optim.weight_decay = 3e-3, 0.3
  c.optim.clip = 1.0
  if 'warm3.4' in switches:
    c.schedule.warmup_epochs = 3.4
  else:
    c.schedule.warmup_steps = 10_000
  if 'smoke' in switches:
    shared.smoke(c, **shared.VIT_SMOKE)
  return c
