"""Fine-tuning by BiT-HyperRule (arXiv:1912.11370, section 3.3).

    python -m vit_jax.main --config=configs/bit_hyperrule.py:r50x1,cifar10 \
        --config.run.pretrained=BiT-M-R50x1.npz --config.data.dir=TFDS_DIR \
        --workdir=runs/r50x1_cifar10

The rule knows the number of training images and their size, and sets length,
resolution and mixup: nothing is searched. SGD with momentum 0.9, rate 0.003,
batch 512, no weight decay, rate / 10 three times, zero head. Data sets are
those of configs/finetune.py; for `folder` give the numbers of your own images
as ':r50x1,folder,3000x640' (images x shorter side). `448` resizes to 448 and
crops 384 instead of 512 and 480, as the paper does for all but R152x4.
Official training flips every image; here half of them, as the paper says.

Expected with BiT-M, whole data sets: CIFAR-10 R50x1 97.3, R101x3 98.4, R152x2
98.5; ImageNet R50x1 80.68, R152x2 85.15.
"""

import re

from configs import finetune
from vit_jax.recipe import shared
from vit_jax.recipe.finetuning import hyperrule
from vit_jax.recipe.keys import default_config

# name: training images, a typical shorter side.
SIZES = {
  'cifar10': (50_000, 32),
  'cifar100': (50_000, 32),
  'imagenet2012': (1_281_167, 375),
  'oxford_iiit_pet': (3_680, 333),
  'oxford_flowers102': (1_020, 500),
  'folder': (1_000, 224),
}


def get_config(arg=None):
  words = (arg or 'r50x1,cifar10').split(',')
  sizes = [w for w in words if re.fullmatch(r'\d+x\d+', w)]
  words = [
    f'bit_{w}' if re.fullmatch(r'r\d+x\d', w) else w
    for w in words
    if w not in sizes
  ]
  model, dataset, switches = finetune.parse(
    ','.join(words), 'bit_r50x1,cifar10', ('448',)
  )
  examples, side = map(int, sizes[0].split('x')) if sizes else SIZES[dataset]
  rule = hyperrule(examples, side, side)
  c = default_config()
  c.run.name = f'{model} by BiT-HyperRule on {dataset}'
  c.run.steps = rule.steps
  c.model.name = model
  finetune.set_data(c, dataset)
  c.data.batch_size = 512
  c.data.crop = 'squash_crop'
  c.data.resize, c.data.image_size = rule.resize, rule.crop
  if '448' in switches and rule.crop == 480:
    c.data.resize, c.data.image_size = 448, 384
  c.data.mixup = rule.mixup
  c.optim.name, c.optim.lr = 'sgd', 0.003
  c.optim.accumulate = 8
  c.schedule.name = 'step'
  c.schedule.boundaries = rule.boundaries
  c.schedule.factor = 0.1
  c.schedule.warmup_steps = rule.warmup_steps
  shared.feed_as_trained(c)
  c.eval.every_steps = c.log.checkpoint_steps = max(100, rule.steps // 10)
  if 'smoke' in switches:
    shared.smoke(c, **finetune.smoke_fields(model))
    c.schedule.boundaries = (2, 3)
  return c
