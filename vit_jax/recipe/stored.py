"""Compares the recipe that a workdir stores with the recipe of a new run."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
from typing import Any

from absl import logging

from vit_jax import text
from vit_jax.files import as_path, read_text
from vit_jax.models.registry import list_models, model_info
from vit_jax.recipe import extension
from vit_jax.recipe.keys import ConfigError, default_config, get, to_json
from vit_jax.recipe.sections import Config
from vit_jax.weights.steps import (
  FOLDER,
  absolute,
  check_path,
  list_steps,
  read_metadata,
)

# Keys that may change when a run is resumed in its workdir, because they do not
# change what is learned.
_MAY_CHANGE = (
  'log',
  'eval',
  'mesh',
  'run.name',
  'run.compilation_cache',
  'run.nan',
  'run.eval_only',
  'run.extend',
  'run.extended',
  'run.resume',
  'run.pretrained',
  'run.prefix',
  'data.dir',
  'data.match_classes',
  'data.may_change',
  'data.max_pixels',
  'data.threads',
  'data.workers',
  'data.prefetch',
  'data.max_bad_fraction',
)

_LENGTHS = ('run.steps', 'run.epochs', 'run.examples')

# Values for keys that the recipes of earlier versions lack, where those
# versions did something else than the default does now. Any other missing key
# gets its default.
EARLIER = {
  'optim.ema_ramp': True,  # 0.1.0 always began the average with a faster decay
  'data.upright': False,  # 0.1.0 ignored the orientation of photos
  'optim.ema_stats': False,  # 0.1.0 did not average BatchNorm statistics
}
# The same for fields of the model, if its class has them.
EARLIER_FIELDS = {
  'model.bn_unbiased': False,  # 0.1.0 averaged the biased variances of batches
}
# Keys that were renamed: {'section.old': 'section.new'}.
RENAMED: dict[str, str] = {}
# Keys that were removed and whose values changed nothing: 'section.old'.
REMOVED: tuple[str, ...] = ()


def upgrade(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """Completes a stored recipe with all keys of this version.

  Args:
    recipe: plain JSON values by section, as in WORKDIR/config.json.

  Returns:
    {'section.key': value}. Of the model's fields it has those that the recipe
    sets, and those of EARLIER_FIELDS.
  """
  stored = {
    RENAMED.get(key, key): value
    for key, value in flatten(recipe)
    if key not in REMOVED
  }
  defaults = dict(flatten(to_json(default_config())))
  del defaults['model.name']
  # Version 0.1.0 had none of the keys in EARLIER.
  fields = {} if EARLIER.keys() & stored.keys() else _earlier_fields(stored)
  return {**defaults, **EARLIER, **fields, **stored}


def _earlier_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
  """The entries of EARLIER_FIELDS that the class of a recipe's model has."""
  name = stored.get('model.name')
  if name not in list_models():
    return {}
  own = {field.name for field in dataclasses.fields(model_info(name).module)}
  return {
    key: value
    for key, value in EARLIER_FIELDS.items()
    if key.removeprefix('model.') in own
  }


def adopt_earlier(config: Config, workdir: str | os.PathLike) -> list[str]:
  """Sets keys so that a run of an earlier version is resumed unchanged.

  A key of EARLIER or EARLIER_FIELDS that the recipe leaves at its default gets
  the value that the run in the workdir has.

  Args:
    config: the recipe; changed in place.
    workdir: workdir of the run.

  Returns:
    'key=value' of every key of `config` that was changed.
  """
  stored = _stored(workdir)
  if stored is None:
    return []
  default, changed = default_config(), []
  for key, earlier in EARLIER.items():
    if stored[key] == earlier != get(default, key) == get(config, key):
      section, name = key.split('.')
      config[section][name] = earlier
      changed.append(f'{key}={earlier}')
  for key, earlier in EARLIER_FIELDS.items():
    field = key.removeprefix('model.')
    if stored.get(key) == earlier and field not in config.model:
      config.model[field] = earlier
      changed.append(f'{key}={earlier}')
  return changed


def check_workdir(
  workdir: str | os.PathLike,
  recipe: Mapping[str, Any],
  goes_on: bool = False,
) -> None:
  """Checks that a recipe continues the run in a workdir, if there is one.

  Args:
    workdir: workdir of the run.
    recipe: the new recipe, as plain JSON values by section.
    goes_on: the run has finished and goes on with this recipe, in which its
      settings may change (`vit_jax.recipe.extension`).

  Raises:
    ConfigError: they differ in a key that changes what is learned, or the
      workdir has no name.
    CheckpointError: its path cannot be used.
  """
  if not str(workdir).strip():
    raise ConfigError(
      f'workdir={str(workdir)!r}: name a directory, such as --workdir=runs/1'
    )
  check_path(workdir)
  stored = _stored(workdir)
  if stored is None:
    return
  new = dict(flatten(recipe))
  changed = _changed(stored, new)
  if goes_on:
    changed = [key for key in changed if not extension.is_setting(key)]
  if not changed:
    return
  different = [
    text.shortened(f'{key}: {stored.get(key)} there, {new.get(key)} now', 500)
    for key in changed
  ]
  if all(k in _LENGTHS or extension.is_setting(k) for k in changed):
    more = stored.get('run.extend')
    above = f' with N above {more:g}, which it has gone on for' if more else ''
    fix = (
      'Leave the length as it was, and let the run go on for N epochs after it '
      f'by run.extend=N{above}; the settings of a finished run may change '
      'there. Or take another --workdir'
    )
  else:
    fix = (
      'Take another --workdir; to go on from that run with new settings, give '
      f'it as --config.run.resume={workdir}'
    )
  raise ConfigError(
    f'{workdir} belongs to another recipe ({"; ".join(different[:4])}'
    f'{"; ..." if len(different) > 4 else ""}). Nothing was changed. {fix}'
  )


def _changed(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The keys that differ and may not change when a run is resumed."""
  return [
    key
    for key in sorted({*stored, *new})
    if stored.get(key) != new.get(key)
    and not any(key == k or key.startswith(f'{k}.') for k in _MAY_CHANGE)
  ]


def adopt_extension(
  config: Config, workdir: str | os.PathLike
) -> tuple[list[str], list[str]]:
  """Sets the keys of a run that goes on after its end.

  Args:
    config: the new recipe; `run.extend` and `run.extended` change in place.
    workdir: workdir of the run.

  Returns:
    'key=value' of what the run has and the recipe does not say, and
    'key: old -> new' of the settings that change here.

  Raises:
    ConfigError: the run cannot go on like this.
  """
  stored = _stored(workdir)
  if stored is None:
    config.run.extended = ()
    if config.run.resume and config.run.extend:
      extension.begin_after(config, config.run.resume)
    return [], []
  new = dict(flatten(to_json(config)))
  changed = _changed(stored, new)
  adopted = extension.adopt(config, stored, changed, workdir)
  settings = [
    f'{key}: {stored.get(key)} -> {new.get(key)}'
    for key in changed
    if extension.is_setting(key) and extension.begins(config, workdir)
  ]
  return adopted, settings


def _stored(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """The upgraded recipe of the run in a workdir; None if there is no run."""
  if not str(workdir).strip():
    return None
  steps = list_steps(absolute(workdir) / FOLDER)
  if not steps:
    return None
  path = as_path(workdir) / 'config.json'
  try:
    recipe = json.loads(read_text(path))
    if not all(isinstance(recipe.get(k), dict) for k in ('run', 'model')):
      raise ValueError('it is no recipe')
    return upgrade(recipe)
  except (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as e:
    logging.warning('%s cannot be read (%s)', path, text.shortened(e))
  # Every step has the recipe as well, and the run writes the file again.
  for step in reversed(steps):
    try:
      recipe = read_metadata(step).recipe
    except Exception:  # Orbax raises many kinds for damaged files
      continue
    if recipe:
      logging.warning('the recipe of %s is taken from %s', workdir, step)
      return upgrade(recipe)
  return None


def flatten(
  recipe: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields ('section.key', value) of nested JSON values."""
  for key, value in recipe.items():
    if isinstance(value, Mapping) and value:
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def changed_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """The entries of a flat recipe that are not the defaults."""
  defaults = dict(flatten(to_json(default_config())))
  return {
    key: value
    for key, value in recipe.items()
    if key not in defaults or value != defaults[key]
  }
