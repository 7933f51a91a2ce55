"""ViT pre-training on ImageNet-21k (arXiv:2010.11929, table 3).

    python -m vit_jax.main --config=configs/vit_i21k.py:l16 \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/l16
    ... :r50_vit_b16, :r50_vit_l32, :r26_vit_b32     the hybrids
    ... :l16,short                                   30 epochs instead of 90

Data: packed ArrayRecord of the 14 M images in 21,843 classes (`vit-jax pack`).
90 epochs (the paper also has 30 for L), batch 4,096, Adam, 1e-3 with a linear
decay to 1e-5, weight decay 0.03, 10,000 warm-up steps, dropout 0.1. The loss is
the sigmoid cross-entropy with head bias -10 and targets 0.9999 and 0.0001, and
before the head there is a tanh layer as wide as the model ('pre_logits'), which
fine-tuning drops. No clipping was published for this data set; here the norm is
clipped at 1, as in all other recipes of the paper's authors. Evaluation resizes
to 256 and crops 224. (Settings: table 3; the authors in issues 2, 34 and 124 of
google-research/vision_transformer.)

Cost: L/16 0.23k TPUv3-core-days (the paper, table 2). Expected: precision at 1
on held-out images at the end of this run (issue 62), then the accuracy on
ImageNet after configs/finetune.py:MODEL,imagenet2012 at 384 px (the
repository's README; dropout 0):

                   here    fine-tuned
    b32            44.04   81.66
    b16            47.88   84.53
    l32            45.42   81.89
    l16            49.90   84.47   (85.05 with dropout 0.1 in fine-tuning)
    h14            49.06   85.13   (table 5 of the paper)
    r50_vit_b16            83.72   (85.08 with dropout 0.1 in fine-tuning)

The paper's 85.30 of L/16 is at 512 px with averaged parameters:
configs/finetune.py:l16,imagenet2012,res512.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='b16', options=('short',))
  c = default_config()
  c.run.name = f'ViT {model} on ImageNet-21k'
  c.run.epochs = 30.0 if 'short' in switches else 90.0
  c.data.source = 'packed'
  c.data.num_classes = 21_843
  c.data.batch_size = 4096
  shared.original_vit(c, shared.full_name(model), dropout=0.1)
  c.optim.lr = 1e-3
  c.optim.weight_decay = 0.03
  c.optim.clip = 1.0
  c.schedule.name, c.schedule.end = 'linear', 1e-5
  # Sharding the optimizer state over the data axis saves memory on every slice.
  c.mesh.preset = 'zero'
  c.eval.every_epochs = 5.0
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 20.0
  c.log.keep_latest = 2
  if 'smoke' in switches:
    shared.smoke(c, representation_size=32)
  return c
