"""ViT from scratch on ImageNet (arXiv:2010.11929, table 3).

    python -m vit_jax.main --config=configs/vit_b16_i1k.py \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :b32, :l16, :l32     the other sizes      ... :l16,warm3.4

300 epochs, batch 4,096, Adam, 3e-3 with a cosine to 0, weight decay 0.3,
dropout 0.1, clip 1, 10,000 warm-up steps, which are 32 epochs. (`warm3.4` has
3.4 epochs, which table 9 of the DeiT paper, arXiv:2012.12877, lists for this
recipe.) The loss is the sigmoid cross-entropy with head bias -10 and targets
0.9999 and 0.0001, and before the head there is a tanh layer as wide as the
model ('pre_logits'), which fine-tuning drops (the authors in issues 2, 89 and
124 of google-research/vision_transformer). Evaluation resizes to 256 and crops
224.

Cost in multiply-accumulates an image: B/16 17.6 G, L/16 61.6 G. Expected on the
validation set at the end of this run at 224 px (the authors, issue 62), and
after fine-tuning at 384 px with configs/finetune.py:b16,imagenet2012 (table 5):

           224 px    fine-tuned, 384 px
    b32    69.19     73.38
    b16    74.79     77.91
    l32    66.90     71.16
    l16    72.59     76.53

A plain ViT needs more regularization with this amount of data:
configs/augreg_i1k.py and configs/vit_s16_i1k.py are better recipes.
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
  shared.original_vit(c, shared.full_name(model), dropout=0.1)
  c.optim.lr, c.optim.weight_decay = 3e-3, 0.3
  c.optim.clip = 1.0
  if 'warm3.4' in switches:
    c.schedule.warmup_steps, c.schedule.warmup_epochs = None, 3.4
  if 'smoke' in switches:
    shared.smoke(c, representation_size=32)
  return c
