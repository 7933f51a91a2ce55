"""DeiT on ImageNet from scratch (arXiv:2012.12877, table 9), 300 epochs.

    python -m vit_jax.main --config=configs/deit_i1k.py:s16 \
        --config.data.dir=TFDS_DIR --workdir=runs/deit_s16
    ... :s16,distill                  learns from RegNetY-16GF
    ... :s16,hard  and  :s16,soft     a teacher, but no distillation token
    ... :s16,distill --config.loss.teacher_weights=TEACHER   another teacher
    ... :s16,plaincosine              the schedule by its formula (see below)

    python -m vit_jax.ablate --config=configs/deit_i1k.py:b16 \
        --config.data.dir=TFDS_DIR --workdir=runs/table3
                                      runs the rows of table 3, with published
                                      numbers beside the results

Sizes ti16, s16, b16: 1.25, 4.60 and 17.6 G multiply-accumulates an image. The
authors took 53 hours for B on 8 V100 (37 on 16), three days for S on 4.
Expected top-1 (paper, table 3; released files), B also after
configs/deit_finetune.py at 384 px:

                                   ti16          s16           b16      b16, 384
    plain                       72.2 72.20    79.8 79.85    81.8 81.85    83.1
    soft                        72.2          79.8          81.8          83.2
    hard                        74.3          80.9          83.0          84.0
    distill, class embedding    73.9          80.9          83.0          84.2
    distill, dist. embedding    74.6          81.1          83.1          84.4
    distill, both               74.5 74.48    81.2 81.16    83.4 83.37    84.5

The teacher of these numbers is RegNetY-16GF (83.6 M parameters, 82.9 at 224
px, 15.9 G multiply-accumulates more an image). Its released file comes from the
hub and needs the package huggingface_hub; without a connection, give the path
of regnety_160-a5fe301d.pth as TEACHER. It sees the student's augmented images,
at its own 224 px. TEACHER can also be a workdir, another file with
--config.loss.teacher=NAME, or stored logits of images that are not mixed.

In the released code the rate is constant within an epoch, the cosine begins at
epoch 0 and not after the warm-up, and the first two epochs run at 1e-6.
`plaincosine` follows the formula instead: a linear warm-up of 5 epochs, step by
step, then a cosine over the rest. With repeated augmentation an epoch has as
many steps as without: it has a third of the images, each of them three times.
The average of the parameters is computed but not evaluated, as in the paper.
`soft` has the paper's temperature 3 and weight 0.1; the loss divides by the
number of classes, as the released code does.
"""

from vit_jax.recipe import shared
from vit_jax.recipe.keys import default_config

SIZES = ('ti16', 's16', 'b16')
KINDS = ('distill', 'hard', 'soft')  # ways to learn from a teacher
OPTIONS = (*KINDS, 'bce', 'plaincosine')
TEACHER = 'hf:timm/regnety_160.deit_in1k'
# Table 3: top-1 at 224 px for each of SIZES, and of b16 at 384 px.
PUBLISHED = {
  'plain': (72.2, 79.8, 81.8, 83.1),
  'soft': (72.2, 79.8, 81.8, 83.2),
  'hard': (74.3, 80.9, 83.0, 84.0),
  'distill both': (74.5, 81.2, 83.4, 84.5),
  'distill class': (73.9, 80.9, 83.0, 84.2),
  'distill distill': (74.6, 81.1, 83.1, 84.4),
}


def base():
  """The settings of table 9, for any model of the family."""
  c = default_config()
  c.run.epochs = 300.0
  shared.imagenet_full(c)
  c.data.batch_size = 1024
  c.data.interpolation = 'bicubic'
  c.data.repeats = 3
  shared.timm_augmentation(c)
  # 4 processes of 256 images were published: the copies of an image are in
  # different processes, and each process draws its own mixing coefficient.
  c.data.repeat_groups = c.data.mix_groups = 4
  c.optim.lr, c.optim.lr_batch = 5e-4, 512
  c.optim.weight_decay = 0.05
  # Every bias and vector, the position table and the class token are exempt;
  # the distillation token is not, as in the released class.
  c.optim.decay_mask = r'.*/kernel|dist_token'
  c.optim.ema = 0.99996
  shared.timm_schedule(c, epoch_lag=1)
  return c


def set_model(c, size: str, switches):
  """Sets DeiT of a size, and the teacher that the switches name."""
  shared.check_size(size, SIZES)
  kind = shared.one_of(switches, KINDS)
  c.model.name = f'deit_{size}' + '_distilled' * (kind == 'distill')
  c.model.scan = True
  if kind:
    c.loss.distill = 'soft' if kind == 'soft' else 'hard'
    c.loss.teacher_weights = TEACHER
  if kind == 'soft':
    c.loss.distill_tau, c.loss.distill_alpha = 3.0, 0.1
  shared.set_preprocessing(c)


def get_config(arg=None):
  size, switches = shared.parse_arg(arg, model='s16', options=OPTIONS)
  c = base()
  set_model(c, size, switches)
  if c.loss.distill != 'none':
    c.loss.teacher_image_size = 224
  c.run.name = f'{c.model.name} on ImageNet'
  c.model.drop_path = 0.1
  if 'bce' in switches:
    c.loss.name, c.loss.label_smoothing = 'bce', 0.0
  if 'plaincosine' in switches:
    c.schedule.name, c.schedule.by_epoch = 'cosine', False
  if 'smoke' in switches:
    shared.smoke(c)
  return c


def sweep(arg=None):
  """The rows of table 3: kinds of distillation, single tokens, and 384 px."""
  size, switches = shared.parse_arg(arg, model='s16', options=OPTIONS)
  shared.check_size(size, SIZES)
  others = sorted(switches - set(KINDS))
  kinds = {
    'plain': (),
    'soft': ('soft',),
    'hard': ('hard',),
    'distill both': ('distill',),
  }
  published = lambda name, column: PUBLISHED[name][column]
  variants = {
    name: {
      'arg': ','.join([size, *kind, *others]),
      'published': published(name, SIZES.index(size)),
    }
    for name, kind in kinds.items()
  }
  variants |= _read_tokens(
    variants['distill both'], '', lambda n: published(n, SIZES.index(size))
  )
  if size != 'b16':
    return variants
  smoke = ['smoke'] if 'smoke' in switches else []
  large = {}
  for name, kind in kinds.items():
    folder = name.replace(' ', '_')
    large[f'{name} 384'] = {
      'config': 'configs/deit_finetune.py',
      'arg': ','.join([size, '384', *kind, *smoke]),
      'run.pretrained': f'{{workdir}}/{folder}/seed{{seed}}',
      'published': published(name, 3),
    }
  tokens = _read_tokens(
    large['distill both 384'], ' 384', lambda n: published(n, 3)
  )
  return variants | large | tokens


def _read_tokens(both, suffix: str, published):
  """Variants that evaluate one token of the distilled model `both` alone."""
  read = {
    **both,
    'run.eval_only': True,
    'run.pretrained': f'{{workdir}}/distill_both{suffix.replace(" ", "_")}'
    '/seed{seed}',
    'loss.distill': 'none',
  }
  return {
    f'distill {token}{suffix}': {
      **read,
      'model.fusion': token,
      'published': published(f'distill {token}'),
    }
    for token in ('class', 'distill')
  }
