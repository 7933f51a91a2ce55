"""Trains a model of your own on a folder of images.

    python -m vit_jax.main --config=my_recipe.py:DIR \
        --config.model.module=my_models --workdir=runs/mine
"""

from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  c = default_config()
  c.run.steps = 200
  c.data.source, c.data.dir = 'folder', arg or ''
  c.data.batch_size = 32
  c.data.image_size = 32
  c.model.name = 'conv_mixer_ti'
  c.optim.lr = 3e-3
  c.schedule.warmup_steps = 20
  c.log.checkpoint_steps = 50
  return c
