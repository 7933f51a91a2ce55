"""The recipe: every key a config may have, its default, and its checks.

A recipe `configs/X.py` starts from `default_config()` and overrides. Sections,
in order: run, data, model, loss, optim, schedule, mesh, eval, log. Every key
here is read by something; a key that is not here is an error, except in
`model`, which takes the fields of the model class. `check` runs before
anything is compiled.
"""

import math

from vit_jax.data import crops, device_cache, transforms
from vit_jax.data.decode import JPEG_DCT, check_jpeg_dct
from vit_jax.preprocessing import (
  CROP_RESIZES,
  INTERPOLATIONS,
  NORMALIZATION,
  ROUNDINGS,
)
from vit_jax.recipe.data import train_transform
from vit_jax.recipe.keys import (
  DURATIONS,
  ConfigError,
  default_config,
  get,
  host_shape,
  image_shape,
  load_model_module,
  model_fields,
  preprocessing,
)
from vit_jax.training import losses, mixing, optimizers, schedules

_CHOICES = {
  'run.dtype': ('auto', 'float32', 'bfloat16'),
  'run.nan': ('stop', 'skip'),
  'data.crop': transforms.CROPS,
  'data.crop_sampling': tuple(crops.SAMPLERS),
  'data.interpolation': transforms.TRAIN_INTERPOLATIONS,
  'data.rounding': ROUNDINGS,
  'data.jpeg_dct': JPEG_DCT,
  'data.normalize': tuple(NORMALIZATION),
  'data.device_cache': device_cache.MODES,
  'data.mix_style': tuple(mixing.PARTNERS),
  'loss.name': tuple(losses.LOSSES),
  'loss.distill': losses.DISTILLATIONS,
  'loss.teacher_normalize': ('', *NORMALIZATION),
  'optim.name': tuple(optimizers.OPTIMIZERS),
  'optim.decay_style': optimizers.DECAY_STYLES,
  'optim.state_dtype': optimizers.STATE_DTYPES,
  'schedule.name': schedules.SCHEDULES,
  'mesh.preset': ('data', 'zero', 'fsdp', 'fsdp_tensor'),
  'eval.crop_resize': CROP_RESIZES,
  'eval.interpolation': INTERPOLATIONS,
  'eval.rounding': ROUNDINGS,
}
_FRACTIONS = (
  'data.flip',
  'data.switch_prob',
  'data.mix_prob',
  'data.erasing',
  'loss.label_smoothing',
  'loss.distill_alpha',
  'optim.ema',
  'data.holdout',
  'data.max_bad_fraction',
)
_POSITIVE = (
  'data.batch_size',
  'data.image_size',
  'data.repeats',
  'data.repeat_groups',
  'data.prefetch',
  'optim.accumulate',
  'log.every_steps',
  'log.keep_latest',
)


def _check_durations(config) -> None:
  """At most one unit of every length; a training run must have one."""
  for group in DURATIONS:
    given = [key for key in group if get(config, key)]
    required = group[0] == 'run.steps' and not config.run.eval_only
    if len(given) > 1:
      values = ' and '.join(f'{key}={get(config, key)}' for key in given)
      raise ConfigError(
        f'{values} both set the same length: keep one of them, and set the '
        'others to None (on the command line, giving one unsets the others)'
      )
    if required and not given:
      raise ConfigError(
        'the length of the run is missing: set run.steps, run.epochs or '
        'run.examples'
      )


def check(config) -> None:
  """Raises ConfigError for values that cannot work, before any work.

  What needs the data or the devices (class counts, divisibility by the mesh)
  is checked by `train.train_and_evaluate`, still before compilation.
  """
  default = default_config()
  for section in config:
    if section not in default:
      raise ConfigError(
        f'unknown section {section!r}; sections: {", ".join(default)}'
      )
    if section != 'model':
      for key in config[section]:
        if key not in default[section]:
          raise ConfigError(
            f'unknown key {section}.{key}; {section} has '
            f'{", ".join(default[section])}'
          )
  for key, allowed in _CHOICES.items():
    if get(config, key) not in allowed:
      raise ConfigError(
        f'{key}={get(config, key)!r}; allowed: {", ".join(map(repr, allowed))}'
      )
  for key in _FRACTIONS:
    if not 0 <= get(config, key) <= 1:
      raise ConfigError(f'{key}={get(config, key)}; must be in [0, 1]')
  for key in _POSITIVE:
    if get(config, key) < 1:
      raise ConfigError(f'{key}={get(config, key)}; must be at least 1')
  for key in (
    'optim.lr',
    'optim.weight_decay',
    'optim.clip',
    'data.mixup',
    'data.cutmix',
    'eval.crop',
  ):
    value = get(config, key)
    if not math.isfinite(value) or value < 0:
      raise ConfigError(f'{key}={value}; must be finite and not negative')
  _check_durations(config)
  if config.data.batch_size % config.optim.accumulate:
    raise ConfigError(
      f'data.batch_size={config.data.batch_size} is not divisible by '
      f'optim.accumulate={config.optim.accumulate}'
    )
  if config.loss.distill != 'none' and not config.loss.teacher_weights:
    raise ConfigError(
      f'loss.distill={config.loss.distill!r} needs loss.teacher_weights: a '
      'workdir, a file (with the model name in loss.teacher), or stored '
      'logits'
    )
  if config.loss.name == 'sigmoid' and config.loss.distill == 'hard':
    raise ConfigError("loss.distill='hard' goes with loss.name='softmax'")

  try:
    check_jpeg_dct(config.data.jpeg_dct)
    train_transform(config, host_shape(config))
    preprocessing(config)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  if config.data.batch_size % config.data.repeat_groups:
    raise ConfigError(
      f'data.repeat_groups={config.data.repeat_groups} must divide '
      f'data.batch_size={config.data.batch_size}'
    )

  load_model_module(config)
  from vit_jax.models.registry import create_model

  try:
    model = create_model(config.model.name, **model_fields(config))
  except ValueError as e:
    raise ConfigError(f'model: {e}') from e
  patch = getattr(model, 'patch_size', None)
  if patch is not None and getattr(model, 'stem', None) is None:
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    height, width = image_shape(config)
    if ph > height or pw > width:
      raise ConfigError(
        f'model.patch_size={patch} is larger than the image {height}x{width}'
        ': raise data.image_size or take a smaller patch'
      )
