"""ViT pre-training on ImageNet-21k as in the paper (arXiv:2010.11929, table 3).

    python -m vit_jax.main --config=configs/vit_i21k.py:l16 \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/l16

Data: packed ArrayRecord of the 14 M images (`vit-jax pack`). Adam, batch
4,096, 90 epochs (L: 30 or 90), peak 1e-3, linear decay, weight decay 0.03,
10,000 warm-up steps, dropout 0.1, multi-label head with bias -10.

Expected after fine-tuning at 384 px (released files of this recipe): ImageNet
B/32 81.66, B/16 84.53, L/32 81.89, L/16 85.30 +- 0.02 (the paper, 512 px);
L/16 took 0.23k TPUv3-core-days.
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
  c.data.image_size = 224
  c.data.area = (0.05, 1.0)
  c.model.update(
    name=f'vit_{model}',
    dropout=0.1,
    head_bias=-10.0,
    representation_size=None,
    class_token_only=True,
  )
  c.loss.name = 'sigmoid'
  c.optim.name = 'adamw'
  c.optim.lr = 1e-3
  c.optim.weight_decay = 0.03
  c.optim.clip = 1.0
  c.schedule.name = 'linear'
  c.schedule.warmup_steps = 10_000
  # Optimizer state split over the data axis: the cheapest win on every slice.
  c.mesh.preset = 'zero'
  c.eval.every_epochs = 5.0
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 20.0
  c.log.keep_latest = 2
  if 'smoke' in switches:
    shared.smoke(c, **shared.VIT_SMOKE)
  return c
