"""Fine-tuning as published (arXiv:2010.11929, table 4; the ViT repository).

    python -m vit_jax.main --config=configs/finetune.py:b16,cifar10 \
        --config.run.pretrained=ViT-B_16.npz --config.data.dir=TFDS_DIR \
        --workdir=runs/b16_cifar10

Any registered model (`vit-jax models`; 'b16' is vit_b16) on cifar10, cifar100,
imagenet2012, oxford_iiit_pet, oxford_flowers102 (TFDS, array_record), or on
`folder`, an image folder. SGD with a bfloat16 momentum, batch 512 in 8 parts,
cosine, clip 1, no weight decay, zero head, 384 px. Switches after a comma:

    short        500 steps and 50 of warm-up (cifar) instead of 10,000
    head         a linear probe: everything but the head is frozen
    layerdecay   the rate falls by 0.75 from block to block towards the input
    smoke        a few seconds on synthetic data

The learning rate was chosen on the held-out part of the training split:

    python -m configs.finetune b16,cifar10     prints a command for each rate

Cost at 384 px on an A100: B/32 0.8 h, B/16 2.2 h, L/16 6.9 h for CIFAR; 3.3,
6.5 and 16.8 h for ImageNet. Expected from the ImageNet-21k files of 2020
(CIFAR-10, CIFAR-100, ImageNet): B/32 98.88, 92.31, 81.66; B/16 99.02, 92.06,
84.53; L/16 99.13, 92.91, 84.47. `short`: B/16 98.59 and 89.17. From AugReg
B/32: pets 93.78, flowers 99.43 (5 runs, big_vision).
"""

import sys

from vit_jax.models.registry import list_models, model_info
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

SMALL, LARGE = (0.001, 0.003, 0.01, 0.03), (0.003, 0.01, 0.03, 0.06)
# name: (source, steps, warm-up, training split, test split, rate, grid)
DATASETS = {
  'cifar10': ('tfds:cifar10', 10_000, 500, 98, 'test', 0.03, SMALL),
  'cifar100': ('tfds:cifar100', 10_000, 500, 98, 'test', 0.03, SMALL),
  'imagenet2012': (
    'tfds:imagenet2012',
    20_000,
    500,
    99,
    'validation',
    0.03,
    LARGE,
  ),
  'oxford_iiit_pet': (
    'tfds:oxford_iiit_pet',
    500,
    100,
    90,
    'test',
    0.003,
    SMALL,
  ),
  'oxford_flowers102': (
    'tfds:oxford_flowers102',
    500,
    100,
    90,
    'test',
    0.003,
    SMALL,
  ),
  'folder': ('folder', 500, 100, 90, 'test', 0.01, SMALL),
}
SWITCHES = ('short', 'head', 'layerdecay')
HEAD_ONLY = ((r'(?!\w*head\w*/).*', {'lr': 0.0}),)


def resolve(word: str) -> str:
  """The registered name of 'b16' or 'vit_b16'; ValueError if none."""
  name = f'vit_{word}'
  return name if name in list_models('vit_') else model_info(word).name


def parse(arg, default: str = 'b16,cifar10', switches=SWITCHES):
  """'b16,cifar10,head' -> ('vit_b16', 'cifar10', {'head'})."""
  model, dataset = default.split(',')
  model, given = shared.parse_arg(
    arg, model=model, options=(*DATASETS, *switches)
  )
  datasets = [d for d in DATASETS if d in given] or [dataset]
  if len(datasets) > 1:
    raise ValueError(f'{" and ".join(datasets)} are both given: name one')
  return resolve(model), datasets[0], given - set(DATASETS)


def set_data(c, dataset: str):
  """Splits of a data set: most of train, the rest of it, and the test split."""
  source, _, _, percent, test, _, _ = DATASETS[dataset]
  c.data.source = source
  c.data.split = f'train[:{percent}%]'
  c.eval.sets = {
    'minival': {'split': f'train[{percent}%:]'},
    'test': {'split': test},
  }


def smoke_fields(name: str) -> dict:
  """Small sizes for the family of a model."""
  fields = model_info(name).fields
  if fields.get('stem') is not None:  # hybrids: the stem divides by 16
    return {**shared.VIT_SMOKE, 'patch_size': 1, 'stem': (1,)}
  if name.startswith('bit'):
    return dict(num_layers=(1, 1), width_factor=0.5)
  if name.startswith('mixer'):
    return dict(patch_size=8, width=32, depth=2, tokens_mlp_dim=16, mlp_dim=64)
  if name.startswith(('vit', 'aa_vit', 'deit')):
    return dict(shared.VIT_SMOKE)
  return {}


def base(model: str, dataset: str):
  """The published settings, for a model and a data set."""
  _, steps, warmup, _, _, lr, _ = DATASETS[dataset]
  c = default_config()
  c.run.name = f'{model} fine-tuned on {dataset}'
  c.run.steps = steps
  c.model.name = model
  set_data(c, dataset)
  patch = model_info(model).fields.get('patch_size', 1)
  # 378 for patches of 14; a Mixer keeps the number of patches it was made for.
  c.data.image_size = (
    model_info(model).preprocessing.size[0]
    if model.startswith('mixer')
    else 384 // patch * patch
  )
  c.data.batch_size = 512
  c.optim.name, c.optim.state_dtype = 'sgd', 'bfloat16'
  c.optim.lr = 0.01 if (model, dataset) == ('vit_b16', 'cifar10') else lr
  c.optim.clip = 1.0
  c.optim.accumulate = 8
  c.schedule.warmup_steps = warmup
  shared.feed_as_trained(c)
  c.data.interpolation = model_info(model).preprocessing.interpolation
  c.eval.every_steps = max(100, steps // 10)
  c.log.checkpoint_steps = c.eval.every_steps
  return c


def get_config(arg=None):
  model, dataset, switches = parse(arg)
  c = base(model, dataset)
  if 'short' in switches:
    c.run.steps, c.schedule.warmup_steps = 500, 50
    c.eval.every_steps = c.log.checkpoint_steps = 100
  if 'head' in switches:
    c.optim.groups = HEAD_ONLY
  if 'layerdecay' in switches:
    c.optim.layer_decay = 0.75
  if 'smoke' in switches:
    shared.smoke(c, **smoke_fields(model))
  return c


def sweep(arg=None) -> list[dict[str, float]]:
  """The published grid: overrides of each run."""
  return [{'optim.lr': lr} for lr in DATASETS[parse(arg)[1]][-1]]


if __name__ == '__main__':
  _arg = sys.argv[1] if len(sys.argv) > 1 else 'b16,cifar10'
  for _run in sweep(_arg):
    _lr = _run['optim.lr']
    print(
      f'python -m vit_jax.main --config=configs/finetune.py:{_arg} '
      f'--config.optim.lr={_lr} --config.run.pretrained=FILE '
      f'--config.data.dir=DIR --workdir=runs/{_arg}_{_lr}'
    )
