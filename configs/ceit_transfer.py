"""CeiT on other data sets (arXiv:2103.11816, table 6).

    python -m vit_jax.ablate --config=configs/ceit_transfer.py:t --seeds=1 \
        --config.run.pretrained=runs/ceit_t --config.data.dir=TFDS_DIR \
        --workdir=runs/ceit_t_transfer
        runs all data sets at 224 px, with published numbers beside the results
    ... :t,384 --config.run.pretrained=runs/ceit_t_384        at 384 px
    ... :t,smoke                                              a few minutes

    python -m vit_jax.main --config=configs/ceit_transfer.py:t,cifar10 ...

Sizes t and s. The settings are those of DeiT's transfer
(configs/deit_finetune.py), because the paper follows it and the released code
has no command for these tasks. That code fine-tunes in evaluation mode, so
BatchNorm keeps the statistics of the pre-training. The data sets are TFDS's;
for inat19, which TFDS does not have, give a packed data set (`vit-jax pack`)
with splits train and validation as --config.data.dir.

Cost in multiply-accumulates an image: t 1.4 G, s 4.8 G; at 384 px 5.1 and 16.0
G. Expected top-1:

               inat18  inat19  cars  flowers  pets  cifar10  cifar100
    t            64.3    72.8  90.5     96.9  93.8     98.5      88.4
    t,384        72.2    77.9  93.0     97.8  94.5     98.5      88.0
    s            73.3    78.9  93.2     98.2  94.6     99.0      90.8
    s,384        79.4    82.7  94.1     98.6  94.9     99.1      90.8
"""

from configs import ceit_i1k, deit_finetune
from vit_jax.recipe import shared

DATASETS = (
  'inat18',
  'inat19',
  'cars',
  'flowers',
  'pets',
  'cifar10',
  'cifar100',
)
PUBLISHED = {
  ('t', 224): (64.3, 72.8, 90.5, 96.9, 93.8, 98.5, 88.4),
  ('t', 384): (72.2, 77.9, 93.0, 97.8, 94.5, 98.5, 88.0),
  ('s', 224): (73.3, 78.9, 93.2, 98.2, 94.6, 99.0, 90.8),
  ('s', 384): (79.4, 82.7, 94.1, 98.6, 94.9, 99.1, 90.8),
}
OPTIONS = ('384', *DATASETS)


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='t', options=OPTIONS)
  shared.check_size(size, ('t', 's'))
  dataset = shared.one_of(switches, DATASETS, 'cifar10')
  c = ceit_i1k.get_config(size)
  c.run.name = f'CeiT-{size.upper()} on {dataset}'
  deit_finetune.set_data(c, dataset)
  c.optim.ema = 0.0
  if '384' in switches:
    c.data.image_size = 384
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """Every data set of table 6 for a size of model and image."""
  size, switches = shared.parse_arg(arg, model='t', options=OPTIONS)
  image_size = 384 if '384' in switches else 224
  others = sorted(switches - set(DATASETS))
  return {
    dataset: {'arg': ','.join([size, dataset, *others]), 'published': value}
    for dataset, value in zip(
      DATASETS, PUBLISHED[size, image_size], strict=True
    )
  }
