"""CeiT on ImageNet (arXiv:2103.11816): DeiT's recipe, 300 epochs.

    python -m vit_jax.main --config=configs/ceit_i1k.py:t \
        --config.data.dir=TFDS_DIR --workdir=runs/ceit_t
    ... :t,ft384 --config.run.pretrained=runs/ceit_t        30 epochs at 384 px
    ... :b,100                                              B with 100 epochs
    ... :t,noi2t  :t,noleff  :t,nolca                       without a module

    python -m vit_jax.ablate --config=configs/ceit_i1k.py:t \
        --config.data.dir=TFDS_DIR --workdir=runs/ceit_modules
                 all eight combinations of Image-to-Tokens, LeFF and LCA

No training time was published. The table has G multiply-accumulates per image,
parameters in millions, and the top-1 of the released files (README of
coeusguo/ceit). The paper's own counts (1.2, 3.6, 4.5, 12.9 G) leave the matrix
products of attention out.

    t         1.40 G    6.36 M   76.4
    t,ft384   5.10      6.43     78.8
    s         4.76     24.2      82.0
    s,ft384  16.0      24.4      83.3
    b        17.7      94.4      82.5   150 epochs
    b,100                        81.9   100 epochs

The authors trained on 4 devices, and BatchNorm normalized the 256 images of
each device. model.bn_groups=4 does the same on any number of devices; 1
normalizes the whole batch. The position table over the layers decays, unlike
the other tables. No command for the fine-tuning was published, so its settings
are DeiT's.

`noi2t` cuts patches of the image as a ViT does, `noleff` has a ViT's MLP, and
`nolca` takes the last class token instead of attending to those of all layers.
Without all three the model is DeiT, whose published top-1 is 72.2 for the size
of t and 79.8 for that of s.
"""

import itertools

from configs import deit_i1k
from vit_jax.recipe import shared

EPOCHS = {'t': 300.0, 's': 300.0, 'b': 150.0}
MODULES = ('i2t', 'leff', 'lca')
OPTIONS = ('ft384', '100', *(f'no{module}' for module in MODULES))
PUBLISHED = {'t': 76.4, 's': 82.0}
DEIT = {'t': 72.2, 's': 79.8}


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='t', options=OPTIONS)
  shared.check_size(size, EPOCHS)
  c = deit_i1k.base()
  c.run.name = f'CeiT-{size.upper()} on ImageNet'
  c.run.epochs = 100.0 if '100' in switches else EPOCHS[size]
  c.model.name = f'ceit_{size}'
  c.model.drop_path = 0.1
  c.model.bn_groups = 4
  c.model.scan = True
  c.optim.decay_mask = r'.*/kernel|pos_layer_embedding'
  shared.set_preprocessing(c)
  for module in MODULES:
    if f'no{module}' in switches:
      c.model[module] = False
  if 'ft384' in switches:
    shared.deit_finetuning(c, 384)
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """Every combination of the three modules, from none (DeiT) to all (CeiT)."""
  size, switches = shared.parse_arg(arg, model='t', options=OPTIONS)
  smoke = ['smoke'] if 'smoke' in switches else []
  variants = {}
  for used in itertools.product((False, True), repeat=len(MODULES)):
    names = [m for m, on in zip(MODULES, used, strict=True) if on]
    off = [f'no{m}' for m, on in zip(MODULES, used, strict=True) if not on]
    variant = {'arg': ','.join([size, *off, *smoke])}
    published = PUBLISHED if all(used) else DEIT if not any(used) else {}
    if size in published:
      variant['published'] = published[size]
    variants[' + '.join(names) or 'none'] = variant
  return variants
