"""ViT pre-training in the style of JFT-300M (arXiv:2010.11929, table 3).

    python -m vit_jax.main --config=configs/vit_jft.py:h14 \
        --config.data.dir=gs://BUCKET/jft --workdir=gs://BUCKET/h14

Any packed multi-label data set; JFT itself has 303 M images of 18,291 classes
and is not public. Adam, batch 4,096, linear decay, weight decay 0.1, 10,000
warm-up steps, no dropout; per model the paper's epochs and peak rate.

Expected with JFT, fine-tuned: H/14 88.55 +- 0.04 on ImageNet (2.5k
TPUv3-core-days), L/16 87.76 +- 0.03 (0.68k).
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

# model: (epochs, peak learning rate)
SETTINGS = {
  'vit_b32': (7, 8e-4),
  'vit_b16': (7, 8e-4),
  'vit_l32': (7, 6e-4),
  'vit_l16': (14, 4e-4),
  'vit_h14': (14, 3e-4),
  'r50_vit_b16': (7, 8e-4),
  'r50_vit_l32': (7, 2e-4),
  # Larger than the paper's: the H/14 settings (see arXiv:2106.04560).
  'vit_g14': (14, 3e-4),
  'vit_G14': (14, 3e-4),
}


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='h14')
  if model not in SETTINGS:
    model = f'vit_{model}'
  if model not in SETTINGS:
    raise ValueError(
      f'unknown model {model!r} of this recipe; allowed: {", ".join(SETTINGS)}'
    )
  c = default_config()
  c.run.name = f'{model} on a JFT-like set'
  epochs, c.optim.lr = SETTINGS[model]
  c.run.epochs = float(epochs)
  c.data.source = 'packed'
  c.data.num_classes = 18_291
  c.data.batch_size = 4096
  c.model.update(name=model, head_bias=-10.0)
  c.loss.name = 'sigmoid'
  c.optim.weight_decay = 0.1
  c.optim.clip = 1.0
  c.schedule.name = 'linear'
  c.schedule.warmup_steps = 10_000
  c.mesh.preset = 'zero'
  if model in ('vit_h14', 'vit_g14', 'vit_G14'):
    c.mesh.preset = 'fsdp'
    c.mesh.fsdp = 32
    # Pooling over the patches keeps 256 tokens, full tiles on a TPU.
    c.model.pool = 'gap'
  if model in ('vit_g14', 'vit_G14'):
    c.model.remat = 'full'
    c.model.scan = True
  c.eval.every_epochs = 1.0
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 20.0
  c.log.keep_latest = 2
  if 'smoke' in switches:
    shared.smoke(c, **shared.vit_smoke(model))
  return c
