"""The allowed values of the keys of a recipe, each key for itself.

The names that a key can have stand beside the code that reads the key; the
tables here say which key has which of them. `vit_jax.recipe.checks` compares a
recipe with the tables, and docs/keys.md is written from them.
"""

from collections.abc import Callable
import math

from vit_jax.data import classes, crops, decode, device_cache, transforms
from vit_jax.parallel import mesh
from vit_jax.preprocessing import CROP_RESIZES, INTERPOLATIONS, ROUNDINGS
from vit_jax.recipe.keys import DTYPES, NAN_POLICIES
from vit_jax.training import losses, mixing, optimizers, schedules
from vit_jax.weights.metadata import MOST_CLASSES

CHOICES: dict[str, tuple[str, ...]] = {
  'run.dtype': DTYPES,
  'run.nan': NAN_POLICIES,
  'data.match_classes': classes.MATCHES,
  'data.crop': transforms.CROPS,
  'data.crop_sampling': tuple(crops.SAMPLERS),
  'data.interpolation': transforms.TRAIN_INTERPOLATIONS,
  'data.rounding': ROUNDINGS,
  'data.jpeg_dct': decode.JPEG_DCT,
  'data.device_cache': device_cache.MODES,
  'data.mix_style': tuple(mixing.PARTNERS),
  'data.mix_mode': mixing.MODES,
  'loss.name': tuple(losses.LOSSES),
  'loss.distill': losses.DISTILLATIONS,
  'optim.name': tuple(optimizers.OPTIMIZERS),
  'optim.decay_style': optimizers.DECAY_STYLES,
  'optim.state_dtype': optimizers.STATE_DTYPES,
  'schedule.name': schedules.SCHEDULES,
  'mesh.preset': mesh.PRESETS,
  'eval.crop_resize': CROP_RESIZES,
  'eval.interpolation': INTERPOLATIONS,
  'eval.rounding': ROUNDINGS,
}

# Limits of numbers: the words for the message, the test, and the keys. The test
# is skipped for a key that is None.
Limit = tuple[str, Callable[[float], bool], tuple[str, ...]]
_CLASSES = ('data.num_classes',)
LIMITS: tuple[Limit, ...] = (
  (
    'at least 1',
    lambda x: x >= 1,
    (
      'run.steps',
      'run.examples',
      'data.num_classes',
      'data.num_examples',
      'data.batch_size',
      'data.image_size',
      'data.image_width',
      'data.resize',
      'data.device_resize',
      'data.repeats',
      'data.max_pixels',
      'data.repeat_groups',
      'data.threads',
      'data.prefetch',
      'data.mix_groups',
      'loss.teacher_image_size',
      'loss.cosine_reg_blocks',
      'optim.accumulate',
      'optim.lr_batch',
      'schedule.cycle_limit',
      'schedule.decay_steps',
      'eval.batch_size',
      'eval.every_steps',
      'log.every_steps',
      'log.checkpoint_steps',
      'log.keep_latest',
      'log.keep_every_steps',
    ),
  ),
  (f'at most {MOST_CLASSES:,}', lambda x: x <= MOST_CLASSES, _CLASSES),
  (
    'in [0, 1]',
    lambda x: 0 <= x <= 1,
    (
      'data.holdout',
      'data.flip',
      'data.max_bad_fraction',
      'data.switch_prob',
      'data.mix_prob',
      'data.erasing',
      'loss.label_smoothing',
      'loss.distill_alpha',
      'loss.bce_threshold',
    ),
  ),
  (
    'in [0, 1)',
    lambda x: 0 <= x < 1,
    ('optim.b1', 'optim.b2', 'optim.momentum', 'optim.ema'),
  ),
  ('in (0, 1]', lambda x: 0 < x <= 1, ('optim.layer_decay',)),
  (
    'finite and more than 0',
    lambda x: 0 < x < math.inf,
    (
      'run.epochs',
      'run.extend',
      'loss.distill_tau',
      'loss.weight',
      'optim.eps',
      'schedule.power',
      'schedule.timescale',
      'schedule.factor',
      'schedule.decay_epochs',
      'schedule.cycle_mul',
      'schedule.cycle_decay',
      'schedule.k_decay',
      'eval.every_epochs',
    ),
  ),
  (
    'finite and not negative',
    lambda x: 0 <= x < math.inf,
    (
      'data.pad',
      'data.jpeg_min_side',
      'data.pseudo_ratio',
      'data.color_jitter',
      'data.workers',
      'data.mixup',
      'data.cutmix',
      'loss.token_weight',
      'loss.cosine_reg',
      'optim.lr',
      'optim.weight_decay',
      'optim.clip',
      'schedule.warmup_steps',
      'schedule.warmup_epochs',
      'schedule.warmup_examples',
      'schedule.warmup_init',
      'schedule.end',
      'schedule.shift',
      'schedule.cooldown_steps',
      'schedule.cooldown_epochs',
      'schedule.epoch_lag',
      'eval.crop',
      'log.checkpoint_minutes',
      'log.images',
      'log.keep_best',
    ),
  ),
  ('in [0, 2^32)', lambda x: 0 <= x < 2**32, ('run.seed',)),
  (
    '-1, which lets the preset choose, or at least 1',
    lambda x: x == -1 or x >= 1,
    ('mesh.fsdp', 'mesh.tensor'),
  ),
)


def allowed(key: str) -> str:
  """The allowed values of a key in words; '' if only its type limits it.

  Args:
    key: such as 'optim.lr'.
  """
  if key in CHOICES:
    return ', '.join(map(repr, CHOICES[key]))
  return ' and '.join(words for words, _, keys in LIMITS if key in keys)
