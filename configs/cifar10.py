"""A Vision Transformer from scratch on CIFAR-10.

    python -m vit_jax.main --config=configs/cifar10.py \
        --config.data.dir=TFDS_DIR --workdir=runs/cifar10
    ... :s16     ViT-S with patches of 4, 200 epochs, for an accelerator

The default is for a CPU: 0.4 M parameters, patches of 4, 9 epochs. Measured:
68.0 % of the test images in 37 minutes on one core.

    python -m vit_jax.ablate --config=configs/cifar10.py:vit --jobs=2 \
        --seeds=1 --config.data.dir=TFDS_DIR --workdir=runs/families

This compares the families, a few minutes each on a core: :vit, :deepvit, :cait,
:ceit and :volo, all with width 64 on 16 patches of 8 x 8 pixels, about 0.2 M
parameters, 3 epochs, and the same optimizer and augmentation. The README has
the results.

Data: TFDS cifar10 prepared as array_record. The data set is held on the device,
and cropped and flipped there.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

# Models of every family, with blocks of width 64 on a grid of 4 x 4 patches.
SMALL = dict(patch_size=8, width=64, num_heads=4, mlp_dim=192)
FAMILIES = {
  'vit': dict(SMALL, name='vit_ti16', depth=5, pool='gap', posemb='learn1d'),
  'deepvit': dict(SMALL, name='deepvit_16', depth=5),
  'cait': dict(SMALL, name='cait_xxs24', depth=3, cls_depth=2),
  'ceit': dict(SMALL, name='ceit_t', depth=4, stem_width=32),
  # Outlook attention on the same grid; the published models halve the grid
  # after it. Positions are added before the third group, and there are no token
  # labels.
  'volo': dict(
    name='volo_d1',
    patch_size=8,
    layers=(1, 1, 2),
    embed_dims=(64,) * 3,
    num_heads=(4,) * 3,
    mlp_ratios=(3,) * 3,
    stem_hidden_dim=16,
    outlook_attention=(True, True, False),
    downsamples=(False,) * 3,
    post_layers=('ca',),
    mix_token=False,
    return_dense=False,
  ),
}


def base():
  """Data, augmentation and optimizer of all models here."""
  c = default_config()
  c.data.source = 'tfds:cifar10'
  c.data.image_size = 32
  c.data.crop = 'pad_crop'
  c.data.batch_size = 64
  c.data.normalize = 'imagenet'
  c.loss.label_smoothing = 0.1
  c.optim.lr = 1e-3
  c.optim.weight_decay = 0.05
  c.optim.clip = 1.0
  c.optim.b2 = 0.99
  c.log.every_steps = 200
  c.log.checkpoint_minutes = 5.0
  return c


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='small')
  c = base()
  c.run.name = f'{model} on CIFAR-10'
  small = {}
  if model == 's16':
    c.run.epochs = 200.0
    c.data.batch_size = 512
    c.model.update(
      name='vit_s16', patch_size=4, drop_path=0.1, activation='gelu_tanh'
    )
    c.schedule.warmup_epochs = 10.0
    c.data.mixup, c.data.cutmix = 0.2, 1.0
    c.eval.every_epochs = 10.0
  elif model == 'small':
    c.run.epochs = 9.0
    c.model.update(
      name='vit_ti16',
      patch_size=4,
      width=96,
      depth=5,
      num_heads=3,
      mlp_dim=192,
      pool='gap',
    )
    c.schedule.warmup_epochs = 1.0
    c.eval.every_epochs = 3.0
  elif model in FAMILIES:
    c.run.epochs = 3.0
    c.model.update(FAMILIES[model])
    c.schedule.warmup_epochs = 0.5
    c.eval.every_epochs = 1.0
    if model == 'volo':
      small = FAMILIES[model]
  else:
    raise ValueError(
      f'unknown model {model!r} of this recipe; allowed: '
      f'small, s16, {", ".join(FAMILIES)}'
    )
  if 'smoke' in switches:
    shared.smoke(c, **small)
  return c


def sweep(arg=None):
  """The families with the same size and budget."""
  _, switches = shared.parse_arg(arg, model='vit')
  return {name: {'arg': ','.join([name, *switches])} for name in FAMILIES}
