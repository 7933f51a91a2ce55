"""Accuracy against size and data on CIFAR-10 and a CPU, as figures of ViT do.

    python -m vit_jax.ablate --config=configs/scaling_cifar10.py --seeds=1 \
        --config.data.dir=TFDS_DIR --workdir=runs/scaling
    vit-jax figures runs/scaling -o data.png
    vit-jax figures runs/scaling --quantity compute -o compute.png

    python -m vit_jax.main --config=configs/scaling_cifar10.py:w64,10k ...

Three ViTs of the widths 16, 32 and 64, with 4 blocks on 16 patches of 8 x 8
pixels, are trained from scratch on the first 2,500, 10,000 and 40,000 images of
the training set. A set with a quarter of the images has twice as many epochs:
12, 6 and 3. Everything else is as in configs/cifar10.py.

With --config.eval.fewshot.source=folder --config.eval.fewshot.dir=DIR, the
10-shot accuracy of a linear probe on the classes of a folder is measured too
(`vit-jax figures ... --metric 10-shot`).

Cost: one to five minutes a run on a busy core. docs/figures.md has the results.
"""

from configs import cifar10
from vit_jax.recipe import shared

WIDTHS = {'w16': 16, 'w32': 32, 'w64': 64}
IMAGES = {'2.5k': 2_500, '10k': 10_000, '40k': 40_000}
EPOCHS = {'2.5k': 12.0, '10k': 6.0, '40k': 3.0}
COLUMN = '10-shot'


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='w64', options=IMAGES)
  shared.check_size(size, WIDTHS)
  images = shared.one_of(switches, IMAGES, '40k')
  width = WIDTHS[size]
  c = cifar10.base()
  c.run.name = f'width {width} on {images} images of CIFAR-10'
  c.run.epochs = EPOCHS[images]
  c.data.split = f'train[:{IMAGES[images]}]'
  c.model.update(
    name='vit_ti16',
    patch_size=8,
    width=width,
    depth=4,
    num_heads=width // 16,
    mlp_dim=2 * width,
    pool='gap',
  )
  c.schedule.warmup_epochs = 0.1 * c.run.epochs
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """Every size on every amount of data."""
  _, switches = shared.parse_arg(arg)
  return {
    f'{size} {images}': {'arg': ','.join([size, images, *switches])}
    for images in IMAGES
    for size in WIDTHS
  }


def measure(config, directory):
  """The 10-shot accuracy of a run, in per cent, if the recipe has a set."""
  from vit_jax.ablation.measures import fewshot_accuracy

  if not config.eval.fewshot.source:
    return {}
  return {COLUMN: fewshot_accuracy(config, directory, 10)}
