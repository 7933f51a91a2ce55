"""Noisy Student on CIFAR-10 and a CPU, with the labels of 90 % hidden.

    python -m vit_jax.ablate --config=configs/noisy_student_cifar10.py \
        --seeds=3 --jobs=2 --config.data.dir=TFDS_DIR --workdir=runs/noisy

One iteration of arXiv:1911.04252 in small. The teacher, an EfficientNet of 0.12
M parameters, learns from the first 5,000 training images. It labels the other
45,000, whose own labels are not read; of each class, the 2,000 images that it
is most certain of are kept. A student of 0.32 M parameters learns from both
kinds of images, 3 unlabeled ones for each labeled one, with RandAugment,
dropout and stochastic depth. `labels only` is the student's size, noise and
length without the unlabeled images. Three seeds each; the split is the same
for all. One of them alone:

    python -m vit_jax.main --config=configs/noisy_student_cifar10.py:teacher ...
    vit-jax pseudo-label TEACHER -o PSEUDO --source tfds:cifar10 \
        --data TFDS_DIR --data-split 'train[10%:]' --per-class 2000
    ... :student --config.data.pseudo_dir=PSEUDO
    ... :labels

Data: TFDS cifar10 prepared as array_record, 32 px. Cost: the teacher sees
150,000 images, at about 300 a second and CPU core; the others see 300,000, at
about 200. With two cores the whole study takes about 100 minutes, and without
`labels only` (--variants=teacher,"noisy student") 60 minutes.

Measured: see "Results so far" in the README. With a student of the teacher's
size, all images that reach a confidence of 0.3, 9 unlabeled ones for each
labeled one, a larger magnitude of RandAugment (5) and a dropout of 0.2, the
student (52.2 %) did not improve over its teachers (53.0 %): its loss at the end
was higher than theirs.
"""

import pathlib

from vit_jax.data.records import PSEUDO_SPLIT
from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

KINDS = ('teacher', 'student', 'labels')
MODEL = dict(
  name='efficientnet_b0',
  stages=(
    (1, 3, 1, 1, 16),
    (2, 3, 2, 4, 24),
    (2, 3, 2, 4, 40),
    (2, 3, 2, 4, 64),
  ),
  stem_channels=16,
  head_channels=128,
)
STUDENT = dict(
  stages=(
    (1, 3, 1, 1, 24),
    (2, 3, 2, 2, 48),
    (2, 3, 2, 2, 96),
    (2, 3, 1, 2, 160),
  ),
  stem_channels=24,
  head_channels=256,
)
LABELED, UNLABELED = 'train[:10%]', 'train[10%:]'
RATIO, PER_CLASS = 3, 2000


def get_config(arg=None):
  kind, switches = shared.parse_arg(arg, model='teacher')
  if kind not in KINDS:
    raise ValueError(f'unknown kind {kind!r}; allowed: {", ".join(KINDS)}')
  c = default_config()
  c.run.name = f'{kind} on CIFAR-10 with a tenth of the labels'
  c.run.epochs = 30.0
  c.data.source, c.data.split = 'tfds:cifar10', LABELED
  c.data.image_size = 32
  c.data.crop = 'pad_crop'
  c.data.batch_size = 100
  c.data.normalize = 'imagenet'
  c.model.update(MODEL)
  c.loss.label_smoothing = 0.1
  c.optim.lr = 2e-3
  c.optim.weight_decay = 0.05
  c.schedule.warmup_epochs = 1.0
  c.log.every_steps = 100
  c.log.checkpoint_minutes = 5.0
  if kind != 'teacher':
    c.data.randaugment = 'rand-m3-n1-mstd0.5-inc1'
    c.model.update(**STUDENT, dropout=0.1, drop_path=0.05)
    c.run.epochs = 60.0
  if kind == 'student':
    # The same number of images as `labels`: an epoch has 4 times as many.
    c.run.epochs, c.data.pseudo_ratio = 15.0, RATIO
    c.schedule.warmup_epochs = 0.5
    c.loss.smooth_soft = False
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """The teacher, its student, and the student's noise without a teacher."""
  _, switches = shared.parse_arg(arg)
  with_switches = lambda kind: ','.join([kind, *switches])
  student = {'arg': with_switches('student')}
  if 'smoke' not in switches:
    student['data.pseudo_dir'] = '{workdir}/teacher/seed{seed}/pseudo'
  return {
    'teacher': {'arg': with_switches('teacher')},
    'noisy student': student,
    'labels only': {'arg': with_switches('labels')},
  }


def prepare(config):
  """Writes the pseudo-labels of the teacher that a student names."""
  from vit_jax.data.pack import has_split
  from vit_jax.data.sources.opening import open_source
  from vit_jax.teachers.pseudo_labels import pseudo_label

  out = pathlib.Path(config.data.pseudo_dir)
  if not config.data.pseudo_dir or has_split(out, PSEUDO_SPLIT):
    return
  images = open_source(
    config.data.source, split=UNLABELED, data_dir=config.data.dir
  )
  pseudo_label(out.parent, images, out, per_class=PER_CLASS)
