"""AugReg pre-training on ImageNet-21k (arXiv:2106.10270).

    python -m vit_jax.main --config=configs/augreg_i21k.py:b16 \
        --config.data.dir=gs://BUCKET/imagenet21k --workdir=gs://BUCKET/b16

300 epochs, batch 4,096, Adam with a bfloat16 first moment, 1e-3 cosine to 0,
10,000 warm-up steps, clip 1, weight decay 1e-4 by the schedule (the files'
wd_0.1; ':wd0.03' for the others), sigmoid loss with head bias -10. The
augmentation level is the model's own, or named: ':l16,strong1'. Regularising
variants of the file names: ':do0.1' (dropout), ':sd0.1' (drop path).

Expected after 384 px fine-tuning: L/16 85.59, B/16 85.49, S/16 83.73,
R50+L/32 85.99, R26+S/32 83.85, Ti/16 78.22, B/32 83.59, S/32 79.58.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

LEVELS = {
  'ti16': 'none',
  's32': 'none',
  's16': 'light1',
  'b32': 'light2',
  'b16': 'light2',
  'l16': 'medium2',
}


def get_config(arg=None):
  model, switches = shared.parse_arg(
    arg, model='b16', options=('wd0.03', 'do0.1', 'sd0.1', *shared.AUGREG)
  )
  c = default_config()
  c.run.name = f'AugReg {model} on ImageNet-21k'
  c.run.epochs = 300.0
  c.data.source = 'packed'
  c.data.num_classes = 21_843
  c.data.batch_size = 4096
  shared.augreg(c, model, switches, LEVELS.get(model, 'medium2'))
  c.model.head_bias = -10.0
  c.mesh.preset = 'zero'
  c.eval.every_epochs = 10.0
  c.eval.crop = 224 / 256
  c.log.checkpoint_minutes = 20.0
  if 'smoke' in switches:
    shared.smoke(c, **shared.vit_smoke(c.model.name))
  return c
