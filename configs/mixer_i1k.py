"""MLP-Mixer from scratch on ImageNet (arXiv:2105.01601; big_vision's recipe).

    python -m vit_jax.main --config=configs/mixer_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=DIR
    ... :b16,60             60 epochs instead of 300
    ... :s16, :s32, :b32, :l16, :l32     the other sizes

Batch 4,096, Adam, 1e-3 with a linear decay to 1e-5 times the peak, 10,000
warm-up steps, weight decay 1e-4 times the schedule, clip 1, RandAugment (2,
15), mixup 0.5, stochastic depth 0.1, sigmoid loss with head bias -6.9.

Cost and expected accuracy of b16 (big_vision's config): 300 epochs take 2 h 11
min on a v3-128 and give 76.3; 60 epochs take 27 minutes and give 70.5.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='b16', options=('60',))
  c = default_config()
  c.run.name = f'Mixer {model} on ImageNet'
  c.run.epochs = 60.0 if '60' in switches else 300.0
  shared.imagenet(c)
  c.data.batch_size = 4096
  c.data.randaugment, c.data.mixup = 'google(2,15)', 0.5
  c.data.mix_style = 'google'
  name = shared.full_name(model, 'mixer_')
  c.model.update(name=name, drop_path=0.1, head_bias=-6.9)
  c.loss.name = 'sigmoid'
  c.optim.name = 'adam'
  c.optim.lr, c.optim.clip = 1e-3, 1.0
  c.optim.decay_style, c.optim.weight_decay = 'schedule', 1e-4
  # The published end, 1e-5, is a factor of the peak.
  c.schedule.name, c.schedule.end = 'linear', 1e-5 * c.optim.lr
  c.schedule.warmup_steps = 10_000
  c.eval.every_epochs = 10.0
  if 'smoke' in switches:
    shared.smoke(c)
  return c
