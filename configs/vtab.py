"""A task of VTAB-1k (arXiv:1910.04867), fine-tuned as in the ViT paper.

    python -m vit_jax.main --config=configs/vtab.py:b16,eurosat \
        --config.run.pretrained=ViT-B_16.npz --config.data.dir=TFDS_DIR \
        --workdir=runs/vtab/eurosat

`vit-jax vtab ViT-B_16.npz --model vit_b16 --data TFDS_DIR -o runs/vtab` runs
all 19 tasks and writes their table (docs/evaluate.md). The tasks are
caltech101, cifar100, dtd, flowers102, pets, sun397, svhn (natural);
patch_camelyon, eurosat, resisc45, retinopathy (specialized); clevr_count,
clevr_distance, dmlab,
dsprites_location, dsprites_orientation, kitti_distance, smallnorb_azimuth and
smallnorb_elevation (structured).

A task is trained on the first 800 images of its training split and the first
200 of its validation split, for 2,500 steps at a rate of 0.01
(arXiv:2010.11929, table 4), and is tested on its whole test split. Images are
resized to 384 px, without crops and flips. Switches, after a comma:

    light   the benchmark's own setting for 1,000 images: 1,000 steps of 64
            images of 224 px, and a rate that falls at 300, 600 and 900 steps
    head    a linear probe: only the head is trained
    smoke   a few seconds on synthetic data

Cost of a task at 384 px on an A100, without its test: the 2,500 steps are a
quarter of configs/finetune.py's on CIFAR, so B/16 0.6 h. The light setting
computes a sixtieth of that.

Expected accuracy, mean of the 19 tasks (arXiv:2010.11929, table 2): H/14 (JFT)
77.6, L/16 (JFT) 76.3, L/16 (ImageNet-21k) 72.7.
"""

from vit_jax.data.sources.vtab import TASKS
from vit_jax.evaluation.vtab import PUBLISHED
from vit_jax.recipe import finetuning, shared
from vit_jax.recipe.vtab import vtab_config

SWITCHES = ('light', 'head')


def _parse(arg):
  """'b16,eurosat,light' -> ('vit_b16', 'eurosat', {'light'})."""
  model, given = shared.parse_arg(arg, model='b16', options=(*TASKS, *SWITCHES))
  task = shared.one_of(given, TASKS, 'eurosat')
  return shared.full_name(model), task, given - set(TASKS)


def get_config(arg=None):
  model, task, switches = _parse(arg)
  c = vtab_config(model, task, light='light' in switches)
  if 'head' in switches:
    c.optim.groups = finetuning.HEAD_ONLY
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """All tasks, with the published accuracy of the model where there is one."""
  model, _, switches = _parse(arg)
  columns = {'vit_h14': 'H/14 JFT', 'vit_l16': 'L/16 I21k'}
  # The switches are other settings than the paper's.
  published = {} if switches else PUBLISHED.get(columns.get(model, ''), {})
  return {
    task: {
      'arg': ','.join([model, task, *sorted(switches)]),
      **({'published': published[task]} if task in published else {}),
    }
    for task in TASKS
  }
