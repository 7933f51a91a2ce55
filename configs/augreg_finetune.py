"""Fine-tuning an AugReg file (arXiv:2106.10270).

    python -m vit_jax.main \
        --config=configs/augreg_finetune.py:ti16,imagenet2012 \
        --config.run.pretrained=Ti_16-i21k-300ep-...npz \
        --config.data.dir=TFDS_DIR --workdir=runs/ti16_imagenet

As configs/finetune.py (same models, data sets and switches) with AugReg's
lengths and rates; `long` takes the longer of its two lengths, ':224' its
smaller images. Of its grid the paper reports the best on the held-out part:

    data set                      steps           rates
    imagenet2012                  20,000          0.01, 0.03
    cifar10, cifar100             2,500 | 10,000  0.001 ... 0.03
    pets, flowers, folder         500 | 2,500     0.001 ... 0.03

Expected on ImageNet at 384 px: L/16 85.59 (rate 0.01), B/16 85.49, S/16
83.73, R50+L/32 85.99 (0.01), R26+S/32 83.85 (0.01), Ti/16 78.22, B/32 83.59
(0.01), S/32 79.58 (0.01), R+Ti/16 75.40. Pets: R26+S/32, 500 steps, rate
0.003, 94.19.
"""

from configs import finetune
from vit_jax.recipe import shared

# Models whose best rate on ImageNet was the lower one.
LOW_RATE = ('vit_l16', 'r50_vit_l32', 'r26_vit_s32', 'vit_b32', 'vit_s32')
STEPS = {
  'imagenet2012': (20_000, 20_000),
  'cifar10': (2_500, 10_000),
  'cifar100': (2_500, 10_000),
}


def get_config(arg=None):
  model, dataset, switches = finetune.parse(
    arg, 'ti16,imagenet2012', ('long', '224', 'head', 'layerdecay')
  )
  c = finetune.base(model, dataset)
  c.run.name = f'AugReg {c.run.name}'
  c.run.steps = STEPS.get(dataset, (500, 2_500))['long' in switches]
  c.schedule.warmup_steps = 100 if c.run.steps == 500 else 500
  c.eval.every_steps = c.log.checkpoint_steps = max(100, c.run.steps // 10)
  if dataset == 'imagenet2012':
    c.optim.lr = 0.01 if model in LOW_RATE else 0.03
  elif dataset.startswith('cifar'):
    c.optim.lr = 0.01
  else:
    c.optim.lr = 0.003
  if '224' in switches:
    c.data.image_size = 224
  if 'head' in switches:
    c.optim.groups = finetune.HEAD_ONLY
  if 'layerdecay' in switches:
    c.optim.layer_decay = 0.75
  if 'smoke' in switches:
    shared.smoke(c, **finetune.smoke_fields(model))
  return c


def sweep(arg=None) -> list[dict[str, float]]:
  """The paper's grid of rates for a data set."""
  dataset = finetune.parse(
    arg, 'ti16,imagenet2012', ('long', '224', 'head', 'layerdecay')
  )[1]
  rates = (0.01, 0.03) if dataset == 'imagenet2012' else finetune.SMALL
  return [{'optim.lr': lr} for lr in rates]
