"""Fine-tuning by BiT-HyperRule (arXiv:1912.11370, section 3.3).

    python -m vit_jax.main --config=configs/bit_hyperrule.py:r50x1,cifar10 \
        --config.run.pretrained=BiT-M-R50x1.npz --config.data.dir=TFDS_DIR \
        --workdir=runs/r50x1_cifar10
    ... :r50x1,cifar10,whole    trained on the whole training split

The rule sets length, resolution and mixup from the number of training images
and their size; nothing is searched. SGD with momentum 0.9, rate 0.003, batch
512, no weight decay, the rate divided by 10 three times, a head that starts at
zero.

The data sets are those of configs/finetune.py. For `folder` give the numbers of
your own images as ':r50x1,folder,3000x640' (images x shorter side). `448`
resizes to 448 and crops 384 instead of 512 and 480, as the paper does for all
models but R152x4.

It is the recipe of the official PyTorch code (bit_pytorch/train.py of
google-research/big_transfer). The JAX and TensorFlow code there differs: it
flips every training image instead of half of them, resizes without antialias
and keeps floating-point pixels, and mixes an image with one in the reversed
batch instead of a random one.

Cost in multiply-accumulates an image at 480 px: R50x1 18.8 G, R152x2 210 G.

Expected with BiT-M files trained on the whole data set (`whole`; README of
google-research/big_transfer, PyTorch): CIFAR-10 R50x1 97.4, R101x3 98.6, R152x2
98.5, all with batch 128 and rate 0.001 in place of the rule's; ImageNet R50x1
80.68, R152x2 85.15.
"""

import re

from configs import finetune
from vit_jax.recipe import finetuning, shared
from vit_jax.recipe.keys import default_config


def get_config(arg=None):
  words = (arg or 'r50x1,cifar10').split(',')
  numbers = [w for w in words if re.fullmatch(r'\d+x\d+', w)]
  words = [
    f'bit_{w}' if re.fullmatch(r'r\d+x\d', w) else w
    for w in words
    if w not in numbers
  ]
  model, dataset, switches = finetune.parse(
    ','.join(words), 'bit_r50x1,cifar10', ('448', 'whole')
  )
  data = finetune.DATASETS[dataset]
  examples, side = data.examples, data.side
  if numbers:
    examples, side = map(int, numbers[0].split('x'))
  rule = finetuning.hyperrule(examples, side, side)
  c = default_config()
  c.run.name = f'{model} by BiT-HyperRule on {dataset}'
  c.run.steps = rule.steps
  c.model.name = model
  finetune.set_data(c, dataset)
  if 'whole' in switches:
    c.data.split = 'train'
    c.eval.sets = {'test': {'split': data.test}}
  c.data.batch_size = finetuning.BATCH_SIZE
  c.data.crop = 'squash_crop'
  c.data.resize, c.data.image_size = rule.resize, rule.crop
  if '448' in switches and rule.crop == 480:
    c.data.resize, c.data.image_size = 448, 384
  c.data.mixup, c.data.mix_style = rule.mixup, 'permute'
  c.optim.name, c.optim.lr = 'sgd', 0.003
  c.optim.accumulate = 8
  c.schedule.name = 'step'
  c.schedule.boundaries = rule.boundaries
  c.schedule.factor = 0.1
  c.schedule.warmup_steps = rule.warmup_steps
  shared.set_preprocessing(c)
  # torchvision's resize, which is Pillow's.
  c.data.interpolation = c.eval.interpolation = 'bilinear_antialias'
  c.eval.every_steps = c.log.checkpoint_steps = max(100, rule.steps // 10)
  if 'smoke' in switches:
    shared.smoke(c)
    c.schedule.boundaries = (2, 3)
  return c
