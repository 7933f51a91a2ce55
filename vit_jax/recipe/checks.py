"""Checks a recipe before any work: keys, types, allowed values, combinations.

All checks that need only the recipe are made here, before data is opened or a
model is compiled. `vit_jax.recipe.build` makes those that need the data or the
devices too (number of classes, length in steps, divisibility by the mesh).

The allowed values of single keys are in `vit_jax.recipe.limits`.
"""

import re

from vit_jax.data import decode
from vit_jax.models.registry import create_model
from vit_jax.parallel import rules
from vit_jax.preprocessing import as_size, normalization
from vit_jax.recipe.data import check_pseudo_labels, train_transform
from vit_jax.recipe.keys import (
  DURATIONS,
  EVAL_SET_KEYS,
  ConfigError,
  default_config,
  get,
  host_shape,
  load_model_module,
  model_fields,
  preprocessing,
)
from vit_jax.recipe.limits import CHOICES, LIMITS
from vit_jax.recipe.overrides import model_field_types
from vit_jax.recipe.sections import Config
from vit_jax.recipe.values import (
  describe_default,
  fits_annotation,
  nearest_word,
  type_name,
)
from vit_jax.training import schedules
from vit_jax.training.trackers import check_trackers


def check(config: Config) -> None:
  """Raises ConfigError for a recipe that cannot work.

  The message names the key and its value, and what is allowed.
  """
  _check_keys(config)
  _check_types(config)
  for key, allowed in CHOICES.items():
    if get(config, key) not in allowed:
      raise ConfigError(
        f'{key}={get(config, key)!r}; allowed: {", ".join(map(repr, allowed))}'
      )
  for words, fits, keys in LIMITS:
    for key in keys:
      value = get(config, key)
      if value is not None and not fits(value):
        raise ConfigError(f'{key}={value}; must be {words}')
  _check_durations(config)
  _check_data(config)
  _check_loss(config)
  _check_training(config)
  _check_model(config)
  try:
    check_trackers(config.log.writers)
  except ValueError as e:
    raise ConfigError(str(e)) from e


def _check_keys(config: Config) -> None:
  """Every section and key of the config is one of the defaults."""
  default = default_config()
  for section in config:
    if section not in default:
      raise ConfigError(
        f'there is no section {section!r}; sections: {", ".join(default)}'
      )
    if section == 'model':
      continue
    for key in config[section]:
      if key not in default[section]:
        nearest = nearest_word(key, default[section])
        raise ConfigError(
          f'there is no key {section}.{key}; the nearest is '
          f'{section}.{nearest}, {describe_default(section, nearest)}'
        )


def _check_types(config: Config) -> None:
  """Every value has the type of its default. None needs the default None."""
  default = default_config()
  for section in default:
    for key in default[section]:
      if section == 'model' and key not in config.model:
        continue  # a recipe may replace the whole section
      value, kind = config[section][key], default[section].get_type(key)
      if value is None:
        fits = default[section][key] is None
      elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
      elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
      elif kind is tuple:
        fits = isinstance(value, tuple | list)
      else:
        fits = isinstance(value, kind)
      if not fits:
        raise ConfigError(
          f'{section}.{key}={value!r}; must be {describe_default(section, key)}'
        )


def _check_durations(config: Config) -> None:
  """At most one unit of every length is set; a training run has a length."""
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


def _check_data(config: Config) -> None:
  """Transforms, RandAugment, evaluation images, and groups of the batch."""
  data = config.data
  try:
    decode.check_jpeg_dct(data.jpeg_dct)
    normalization(data.normalize, 'data.normalize')
    teacher = config.loss.teacher_normalize or data.normalize
    normalization(teacher, 'loss.teacher_normalize')
    train_transform(config, host_shape(config))
    preprocessing(config)
    check_pseudo_labels(config)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  side = max(host_shape(config))
  if 0 < data.jpeg_min_side < side:
    raise ConfigError(
      f'data.jpeg_min_side={data.jpeg_min_side} must be 0, or at least the '
      f'image size ({side}): else crops are enlarged'
    )
  for key in ('data.repeat_groups', 'data.mix_groups', 'optim.accumulate'):
    if data.batch_size % get(config, key):
      raise ConfigError(
        f'{key}={get(config, key)} must divide data.batch_size='
        f'{data.batch_size}'
      )
  if data.repeats > data.batch_size:
    raise ConfigError(
      f'data.repeats={data.repeats} must not be more than data.batch_size='
      f'{data.batch_size}: an image is repeated within a batch'
    )
  for name, spec in config.eval.sets.items():
    unknown = sorted(set(spec) - set(EVAL_SET_KEYS))
    if unknown:
      raise ConfigError(
        f'eval.sets.{name}: there is no key {unknown[0]!r}; allowed: '
        f'{", ".join(EVAL_SET_KEYS)}'
      )
  shots = config.eval.fewshot.shots
  if not all(isinstance(n, int) and n >= 1 for n in shots):
    raise ConfigError(
      f'eval.fewshot.shots={shots}: must be numbers of images per class of at '
      'least 1, such as (1, 5, 10), or () for no probe'
    )


def _check_loss(config: Config) -> None:
  """Targets and teacher."""
  loss = config.loss
  labels = tuple(loss.label_range)
  if len(labels) != 2 or not 0 <= labels[0] < labels[1] <= 1:
    raise ConfigError(
      f'loss.label_range={labels}; must be (off, on) with 0 <= off < on <= 1'
    )
  if loss.distill != 'none' and not loss.teacher_weights:
    raise ConfigError(
      f'loss.distill={loss.distill!r} needs loss.teacher_weights: a workdir, a '
      'file (with the name of its model in loss.teacher), or stored logits'
    )
  if loss.name != 'softmax' and loss.distill == 'hard':
    raise ConfigError(
      f"loss.distill='hard' needs loss.name='softmax', not {loss.name!r}"
    )
  if loss.name == 'bce' and loss.bce_threshold == 0 < loss.label_smoothing:
    raise ConfigError(
      f"loss.name='bce' with loss.label_smoothing={loss.label_smoothing:g} "
      'makes every class a right one: set loss.bce_threshold, such as 0.2 '
      '(arXiv:2110.00476), or loss.label_smoothing=0'
    )
  if config.eval.ema and not config.optim.ema:
    raise ConfigError(
      'eval.ema=True needs averaged parameters: set optim.ema, such as 0.9999'
    )


def _check_training(config: Config) -> None:
  """Schedule, regular expressions over parameters, and the profiler."""
  try:
    # The length in steps is not known before the data is opened. Warm-up and
    # cooldown fit into a very long run, which leaves the other checks.
    schedules.make_schedule(
      config.schedule,
      config.optim,
      total_steps=10**9,
      steps_per_epoch=1,
      batch_size=config.data.batch_size,
    )
    rules.check_rules(config.mesh.rules)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  patterns = [('optim.decay_mask', config.optim.decay_mask)]
  for group in config.optim.groups:
    if len(group) != 2 or not isinstance(group[0], str):
      raise ConfigError(
        f"optim.groups: {group!r} must be (regex, {{'lr': factor, 'decay': "
        'factor})'
      )
    patterns.append(('optim.groups', group[0]))
  for key, pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as e:
      raise ConfigError(
        f'{key}: {pattern!r} is not a regular expression: {e}'
      ) from e
  steps = tuple(config.log.profile_steps)
  if steps and not (len(steps) == 2 and 0 <= steps[0] < steps[1]):
    raise ConfigError(
      f'log.profile_steps={steps}; must be (first, last) with first < last, or '
      '() for none'
    )


def _check_model(config: Config) -> None:
  """The model exists, its fields have their types, and its patches fit."""
  load_model_module(config)
  try:
    fields = model_fields(config)
    known = model_field_types(config.model.name)
    for name, value in fields.items():
      if name in known and not fits_annotation(value, known[name][0]):
        annotation, default = known[name]
        raise ConfigError(
          f'model.{name}={value!r}; must be {type_name(annotation)}; the '
          f'default is {default!r}'
        )
    model = create_model(config.model.name, **fields)
  except ConfigError:
    raise
  except ValueError as e:
    raise ConfigError(f'model: {e}') from e
  patch = getattr(model, 'patch_size', None)
  if patch is not None and getattr(model, 'stem', None) is None:
    patch_height, patch_width = as_size(patch)
    height, width = preprocessing(config).size
    if patch_height > height or patch_width > width:
      raise ConfigError(
        f'model.patch_size={patch} is larger than the image {height}x{width}: '
        'raise data.image_size or take a smaller patch'
      )
