"""ViT on CIFAR-10 from scratch: a CPU-sized one, and ViT-S.

    python -m vit_jax.main --config=configs/cifar10.py \
        --config.data.dir=TFDS_DIR --workdir=runs/cifar10
    ... :s16     ViT-S, patch 4, 200 epochs, for an accelerator

Data: TFDS cifar10 prepared as array_record. The data set is held on the
device, cropped and flipped there.
"""

from vit_jax import recipes
from vit_jax.config import default_config


def get_config(arg=None):
  model, switches = recipes.parse_arg(arg, model='small')
  c = default_config()
  c.run.name = f'ViT {model} on CIFAR-10'
  c.data.source = 'tfds:cifar10'
  c.data.image_size = 32
  c.data.crop = 'pad_crop'
  c.data.normalize = 'imagenet'
  c.loss.label_smoothing = 0.1
  c.optim.weight_decay = 0.05
  c.optim.clip = 1.0
  c.optim.b2 = 0.99
  if model == 's16':
    c.run.epochs = 200.0
    c.data.batch_size = 512
    c.model.update(name='vit_s16', patch_size=4, drop_path=0.1,
                   activation='gelu_tanh')
    c.optim.lr = 1e-3
    c.schedule.warmup_epochs = 10.0
    c.data.mixup, c.data.cutmix = 0.2, 1.0
    c.eval.every_epochs = 10.0
  elif model == 'small':
    c.run.epochs = 9.0
    c.data.batch_size = 64
    c.model.update(name='vit_ti16', patch_size=4, width=96, depth=5,
                   num_heads=3, mlp_dim=192, pool='gap')
    c.optim.lr = 1e-3
    c.schedule.warmup_epochs = 1.0
    c.eval.every_epochs = 3.0
  else:
    raise ValueError(f'unknown model {model!r} of this recipe; allowed: '
                     'small, s16')
  c.log.every_steps = 200
  c.log.checkpoint_minutes = 5.0
  if 'smoke' in switches:
    recipes.smoke(c, **recipes.VIT_SMOKE)
  return c
