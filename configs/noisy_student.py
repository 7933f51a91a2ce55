"""A noised student on labeled and pseudo-labeled images (arXiv:1911.04252).

    python -m vit_jax.main --config=configs/deit_i1k.py:s16 ...     a teacher
    vit-jax pack LABELED DATA --split train
    vit-jax pack TEST DATA --split test
    vit-jax pseudo-label TEACHER UNLABELED DATA --threshold 0.3 --per-class N
    python -m vit_jax.main --config=configs/noisy_student.py:b16 \
        --config.data.dir=DATA --workdir=runs/student
    ... and again, with the student as TEACHER

The model is any registered name, or a DeiT size (ti16, s16, b16). It should be
at least as large as the teacher. As in the paper, labels are soft, images above
a confidence of 0.3 are kept, classes are balanced by copies of images (the
paper has 130,000 images per class, of JFT's 300 million), and only the student
is noised. The paper's nets are EfficientNets, noised by RandAugment (2 x 27),
dropout 0.5 and stochastic depth 0.2. Here a ViT gets DeiT's noise with dropout
added: RandAugment (2 x 9), dropout 0.1, drop path 0.2. The more pseudo-labeled
images there are, the less often the labeled ones are seen: choose N
accordingly.

Cost: that of configs/deit_i1k.py, where an epoch is one pass over both kinds of
images. Expected: no number is published for a ViT; the paper's student
EfficientNet-L2 went from 85.5 to 88.4 on ImageNet.
"""

from configs import deit_i1k
from vit_jax.recipe import shared


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='s16')
  c = deit_i1k.base()
  c.model.name = f'deit_{model}' if model in deit_i1k.SIZES else model
  c.run.name = f'{c.model.name}, noisy student'
  c.data.source, c.data.split = 'packed', 'train+pseudo'
  c.data.repeats = c.data.repeat_groups = 1  # balancing copies images already
  c.data.mixup = c.data.cutmix = 0.0  # the paper mixes nothing
  c.loss.label_smoothing = 0.0  # soft labels are smooth
  c.model.drop_path = 0.2
  c.model.dropout = 0.1
  c.optim.decay_mask = r'.*/kernel'
  c.eval.sets = {'test': {'split': 'test'}}
  shared.set_preprocessing(c)
  if 'smoke' in switches:
    shared.smoke(c)
  return c
