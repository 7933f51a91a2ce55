"""A noised student on labelled and pseudo-labelled images (arXiv:1911.04252).

    python -m vit_jax.main --config=configs/deit_i1k.py:s16 ...     a teacher
    vit-jax pack LABELLED DATA --split train
    vit-jax pack TEST DATA --split test
    vit-jax pseudo-label TEACHER UNLABELLED DATA --threshold 0.3 --per-class N
    python -m vit_jax.main --config=configs/noisy_student.py:b16 \
        --config.data.dir=DATA --workdir=runs/student
    ... and once more with the student as TEACHER

MODEL is any registered name, or a DeiT size (ti16, s16, b16); it should be as
large as the teacher or larger. The paper's way is kept: soft labels, images
above a confidence of 0.3, balanced by copies (130,000 a class of JFT's 300
million), all kinds of noise on the student only. Its nets are EfficientNets;
their noise was RandAugment 2 x 27, dropout 0.5 and stochastic depth 0.2, and
the student EfficientNet-L2 went from 85.5 to 88.4 top-1 on ImageNet. Ours is a
ViT, so the noise is what DeiT uses, with dropout added: RandAugment 2 x 9,
dropout 0.1, drop path 0.2. How often labelled images are seen follows from the
number of pseudo-labelled ones: choose N with it. Cost: that of
configs/deit_i1k.py, an epoch being one pass over both kinds.
"""

from configs import deit_i1k, finetune
from vit_jax.recipe import shared


def get_config(arg=None):
  model, switches = shared.parse_arg(arg, model='s16')
  c = deit_i1k.base()
  c.model.name = f'deit_{model}' if model in deit_i1k.SIZES else model
  c.run.name = f'{c.model.name}, noisy student'
  c.data.source, c.data.split = 'packed', 'train+pseudo'
  c.data.repeats = 1  # balancing has copies enough
  c.data.mixup = c.data.cutmix = 0.0  # the paper mixes nothing
  c.loss.label_smoothing = 0.0  # soft labels are smooth
  c.model.drop_path = 0.2
  c.model.dropout = 0.1
  c.optim.decay_mask = r'.*/kernel'
  c.eval.sets = {'test': {'split': 'test'}}
  shared.feed_as_trained(c)
  if 'smoke' in switches:
    shared.smoke(c, **finetune.smoke_fields(c.model.name))
  return c
