"""Fine-tuning an AugReg file (arXiv:2106.10270, section 3.4).

    python -m vit_jax.main \
        --config=configs/augreg_finetune.py:ti16,imagenet2012 \
        --config.run.pretrained=Ti_16-i21k-300ep-...npz \
        --config.data.dir=TFDS_DIR --workdir=runs/ti16_imagenet

It has the models, data sets and switches of configs/finetune.py, and AugReg's
lengths and rates: batch 512, 384 px, dropout 0. The paper ran this grid, and
reports the run that is best on held-out images of the training split:

    data set                                   steps           rates
    imagenet2012                               20,000          0.01, 0.03
    cifar10, cifar100                          2,500 | 10,000  0.001 ... 0.03
    oxford_iiit_pet, oxford_flowers102, folder   500 | 2,500   0.001 ... 0.03

`long` takes the longer of the two lengths, `224` takes images of 224 px. This
runs the grid of a data set:

    python -m vit_jax.ablate \
        --config=configs/augreg_finetune.py:ti16,oxford_iiit_pet --seeds=1 \
        --config.run.pretrained=FILE --config.data.dir=TFDS_DIR --workdir=DIR

Cost: that of configs/finetune.py at the same size and number of steps.

Expected on ImageNet with the recommended files at 384 px and 20,000 steps
(README of google-research/vision_transformer), at this recipe's default rate:

    l16  85.59 (0.01)    r50_vit_l32  85.99 (0.01)    b32         83.59 (0.01)
    b16  85.49 (0.03)    r26_vit_s32  83.85 (0.01)    s32         79.58 (0.01)
    s16  83.73 (0.03)    ti16         78.22 (0.03)    r_vit_ti16  75.40 (0.03)

Pets at 384 px, 500 steps, rate 0.003: R26+S/32 94.19 on the test split.

`big_vision` is that project's transfer config: the lengths of
configs/finetune.py, no micro-batches, pixels truncated to integers, and
evaluation at 448 px of the shorter side, cropped to 384. Training images of
CIFAR are resized to 448 and cropped to 384 at random, the others have inception
crops. Expected test accuracy of the recommended b32, means of 5 runs:

    cifar10   98.55 (rate 0.003)    oxford_iiit_pet     93.78 (0.003)
    cifar100  91.35 (0.01)          oxford_flowers102   99.43 (0.003)
    imagenet2012  83.27 (0.03)
"""

from configs import finetune
from vit_jax.recipe import finetuning, shared

# Models whose best rate on ImageNet was the lower one of the grid.
LOW_RATE = ('vit_l16', 'r50_vit_l32', 'r26_vit_s32', 'vit_b32', 'vit_s32')
IMAGENET_RATES = (0.01, 0.03)
STEPS = {
  'imagenet2012': (20_000, 20_000),
  'cifar10': (2_500, 10_000),
  'cifar100': (2_500, 10_000),
}
SWITCHES = ('long', '224', 'head', 'layerdecay', 'big_vision')
# Best rates of big_vision's transfer config for B/32.
BIG_VISION_RATES = {
  'imagenet2012': 0.03,
  'cifar10': 0.003,
  'cifar100': 0.01,
}


def get_config(arg=None):
  model, dataset, switches = finetune.parse(arg, 'ti16,imagenet2012', SWITCHES)
  c = finetune.base(model, dataset)
  c.run.name = f'AugReg {c.run.name}'
  c.run.steps = STEPS.get(dataset, (500, 2_500))['long' in switches]
  c.schedule.warmup_steps = 100 if c.run.steps == 500 else 500
  c.eval.every_steps = c.log.checkpoint_steps = max(100, c.run.steps // 10)
  if dataset == 'imagenet2012':
    c.optim.lr = IMAGENET_RATES[model not in LOW_RATE]
  elif dataset.startswith('cifar'):
    c.optim.lr = 0.01
  else:
    c.optim.lr = 0.003
  if 'big_vision' in switches:
    _set_big_vision(c, dataset)
  if '224' in switches:
    finetuning.set_image_size(c, 224)
  return finetune.set_switches(c, switches)


def _set_big_vision(c, dataset: str):
  """Lengths, rates and images of big_vision's configs/transfer.py."""
  finetuning.set_length(c, finetune.DATASETS[dataset].examples)
  if c.run.steps == 500:
    c.schedule.warmup_steps = 100
  c.eval.every_steps = c.log.checkpoint_steps = max(100, c.run.steps // 10)
  c.optim.lr = BIG_VISION_RATES.get(dataset, 0.003)
  c.optim.accumulate = 1
  shared.big_vision_images(c)
  c.data.interpolation = 'bilinear'
  c.eval.crop = 384 / 448
  if dataset.startswith('cifar'):
    c.data.crop, c.data.resize = 'resize_crop', 448
    c.data.interpolation = 'area'


def sweep(arg=None) -> list[dict[str, float]]:
  """The paper's grid of rates for a data set."""
  dataset = finetune.parse(arg, 'ti16,imagenet2012', SWITCHES)[1]
  imagenet = dataset == 'imagenet2012'
  rates = IMAGENET_RATES if imagenet else finetuning.SMALL_GRID
  return [{'optim.lr': rate} for rate in rates]
