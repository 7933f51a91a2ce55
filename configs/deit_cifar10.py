"""Distillation on CIFAR-10 and a CPU: DeiT's table 3 with small models.

    python -m vit_jax.ablate --config=configs/deit_cifar10.py --seeds=3 \
        --jobs=2 --config.data.dir=TFDS_DIR --workdir=runs/deit_cifar10

First two teachers: a small BiT (convolutions, GroupNorm) and a small RegNetY
(grouped convolutions, BatchNorm; DeiT's own teacher is a RegNetY). Then a small
ViT without a teacher, and distilled from the hard and soft labels of each
(DeiT's distillation token), three seeds each. At last the accuracy of each of
the two tokens of BiT's students alone. To run one of the models:

    python -m vit_jax.main --config=configs/deit_cifar10.py:teacher ...
    ... :regnet    the other teacher
    ... :plain   ... :hard  and  :soft  --config.loss.teacher_weights=TEACHER

Data: TFDS cifar10 prepared as array_record, 32 px, held on the device. All are
trained on the same 50,000 images, cropped and flipped; the teachers for 4
epochs, the students for 2. Cost: two CPU cores do about 600 images a second of
the teachers' training, 1,800 of the student's and 1,100 of the distilled one's;
the whole study takes about 40 minutes. The README has the results.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

KINDS = ('plain', 'hard', 'soft', 'teacher', 'regnet')
STUDENT = dict(patch_size=8, width=96, depth=4, num_heads=4, mlp_dim=192)
TEACHERS = {
  'teacher': dict(name='bit_r50x1', num_layers=(2, 2, 2), width_factor=0.5),
  # Three stages of 1, 2 and 2 blocks, with the widths 48, 96 and 192.
  'regnet': dict(
    name='regnety_040',
    w0=48,
    wa=32.0,
    wm=2.0,
    depth=5,
    group_size=48,
    stem_width=32,
  ),
}


def get_config(arg=None):
  kind, switches = shared.parse_arg(arg, model='plain')
  if kind not in KINDS:
    raise ValueError(f'unknown kind {kind!r}; allowed: {", ".join(KINDS)}')
  c = default_config()
  c.run.name = f'{kind} on CIFAR-10'
  c.data.source = 'tfds:cifar10'
  c.data.image_size = 32
  c.data.crop = 'pad_crop'
  c.data.batch_size = 128
  c.data.normalize = 'imagenet'
  c.loss.label_smoothing = 0.1
  c.optim.lr = 2e-3
  c.optim.clip = 1.0
  c.optim.weight_decay = 0.05
  c.optim.decay_mask = r'.*/kernel'
  c.schedule.warmup_epochs = 0.5
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 5.0
  if kind in TEACHERS:
    c.run.epochs = 4.0
    c.model.update(TEACHERS[kind])
  else:
    c.run.epochs = 2.0
    c.model.update(
      name='deit_ti16' + '_distilled' * (kind != 'plain'), **STUDENT
    )
  if kind in ('hard', 'soft'):
    c.loss.distill = kind
  if kind == 'soft':
    # The loss has the factor tau^2 / C, which is 0.9 with tau = 3 and 10
    # classes.
    c.loss.distill_tau = 3.0
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """Teachers, students without and with them, and single tokens of students."""
  _, switches = shared.parse_arg(arg)
  with_switches = lambda kind: ','.join([kind, *switches])
  variants = {
    'teacher': {'arg': with_switches('teacher'), 'seeds': 1},
    'RegNetY teacher': {'arg': with_switches('regnet'), 'seeds': 1},
    'no teacher': {'arg': with_switches('plain')},
  }
  for kind in ('hard', 'soft'):
    for name, teacher in (
      (kind, 'teacher'),
      (f'{kind} from RegNetY', 'RegNetY_teacher'),
    ):
      variants[name] = {
        'arg': with_switches(kind),
        'loss.teacher': '',  # a workdir says its model
        'loss.teacher_weights': f'{{workdir}}/{teacher}/seed0',
      }
  for kind in ('hard', 'soft'):
    for token in ('class', 'distill'):
      variants[f'{kind}: {token} token'] = {
        'arg': with_switches(kind),
        'loss.distill': 'none',
        'run.eval_only': True,
        'model.fusion': token,
        'run.pretrained': f'{{workdir}}/{kind}/seed{{seed}}',
      }
  return variants
