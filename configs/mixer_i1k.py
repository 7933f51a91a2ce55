"""MLP-Mixer from scratch on ImageNet (arXiv:2105.01601; big_vision's recipe).

    python -m vit_jax.main --config=configs/mixer_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=DIR

300 epochs (':60' for 60), batch 4,096, Adam 1e-3, linear decay to 1e-5 of it,
10,000 warm-up steps, weight decay 1e-4 by the schedule, clip 1, RandAugment
(2, 15), mixup 0.5, stochastic depth 0.1, sigmoid loss with head bias -6.9.

Expected, B/16: 76.3 % after 300 epochs, 2 h 11 m on a v3-128; 70.5 % after 60,
27 minutes.
"""

from configs import finetune
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='b16', options=('60',))
  c = default_config()
  c.run.name = f'Mixer {model} on ImageNet'
  c.run.epochs = 60.0 if '60' in switches else 300.0
  c.data.source = 'tfds:imagenet2012'
  c.data.split = 'train[:99%]'
  c.data.batch_size = 4096
  c.data.randaugment, c.data.mixup = 'google(2,15)', 0.5
  c.data.mix_style = 'google'
  name = model if model.startswith('mixer_') else f'mixer_{model}'
  c.model.update(name=name, drop_path=0.1, head_bias=-6.9)
  c.loss.name = 'sigmoid'
  c.optim.name = 'adam'
  c.optim.lr, c.optim.clip = 1e-3, 1.0
  c.optim.decay_style, c.optim.weight_decay = 'schedule', 1e-4
  c.schedule.name = 'linear'
  c.schedule.end = 1e-5 * c.optim.lr
  c.schedule.warmup_steps = 10_000
  c.mesh.preset = 'zero'
  c.eval.sets = {
    'minival': {'split': 'train[99%:]'},
    'val': {'split': 'validation'},
  }
  c.eval.crop = 224 / 256
  c.eval.every_epochs = 10.0
  c.log.checkpoint_minutes = 20.0
  if 'smoke' in switches:
    shared.smoke(c, **finetune.smoke_fields(c.model.name))
  return c
