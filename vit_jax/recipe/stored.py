"""The recipe that a workdir stores, held against the one at hand."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
from typing import Any

from etils import epath

from vit_jax.models.registry import list_models, model_info
from vit_jax.recipe.keys import ConfigError, default_config, get, to_json
from vit_jax.recipe.sections import Config
from vit_jax.weights.steps import find_step

# Keys that a run may change when it goes on in its workdir: they do not touch
# what is learned.
_MAY_CHANGE = (
  'log',
  'eval',
  'mesh',
  'run.name',
  'run.nan',
  'run.eval_only',
  'run.resume',
  'run.pretrained',
  'data.dir',
  'data.threads',
  'data.workers',
  'data.prefetch',
  'data.max_bad_fraction',
)

# How stored recipes of earlier versions are read. A key that they lack has its
# default, unless it stands here: what those versions did, where that is not
# what the default does.
EARLIER = {
  'optim.ema_ramp': True,  # 0.1.0: the decay of the average always began faster
  'optim.ema_stats': False,  # 0.1.0: BatchNorm statistics were not averaged
}
# The same for fields of the model, where it has them.
EARLIER_FIELDS = {
  'model.bn_unbiased': False,  # 0.1.0: running variances were those of batches
}
# A key that was renamed: {'section.old': 'section.new'}.
RENAMED: dict[str, str] = {}
# A key that was removed because nothing depends on it: 'section.old'.
REMOVED: tuple[str, ...] = ()


def upgrade(recipe: Mapping[str, Any]) -> dict[str, Any]:
  """A stored recipe, with all keys of this version.

  Args:
    recipe: plain JSON values by section, as in WORKDIR/config.json.

  Returns:
    {'section.key': value}. Fields of the model that the recipe does not set are
    not among them, except those of EARLIER_FIELDS.
  """
  stored = {
    RENAMED.get(key, key): value
    for key, value in _flatten(recipe)
    if key not in REMOVED
  }
  defaults = dict(_flatten(to_json(default_config())))
  del defaults['model.name']
  # Version 0.1.0 had none of the keys in EARLIER.
  fields = {} if EARLIER.keys() & stored.keys() else _earlier_fields(stored)
  return {**defaults, **EARLIER, **fields, **stored}


def _earlier_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
  """EARLIER_FIELDS that the model of a recipe has."""
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
  """Lets a run of an earlier version go on with what that version did.

  Of the keys in EARLIER and EARLIER_FIELDS, those that a recipe leaves at their
  default are set to the value of the run that the workdir holds.

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
  workdir: str | os.PathLike, recipe: Mapping[str, Any]
) -> None:
  """Compares a recipe with that of the run in a workdir, if there is one.

  Args:
    workdir: of the run.
    recipe: plain JSON values by section.

  Raises:
    ConfigError: they differ in a key that changes what is learned.
  """
  stored = _stored(workdir)
  if stored is None:
    return
  new = dict(_flatten(recipe))
  different = [
    f'{key}: {stored.get(key)} there, {new.get(key)} now'
    for key in sorted({*stored, *new})
    if stored.get(key) != new.get(key)
    and not any(key == k or key.startswith(f'{k}.') for k in _MAY_CHANGE)
  ]
  if different:
    raise ConfigError(
      f'{workdir} belongs to another recipe ({"; ".join(different[:4])}'
      f'{"; ..." if len(different) > 4 else ""}). Nothing was changed. Take '
      'another --workdir; to go on from that run with new settings, give it '
      f'as --config.run.resume={workdir}'
    )


def _stored(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """The upgraded recipe of the run in a workdir; None if there is no run."""
  path = epath.Path(workdir) / 'config.json'
  if find_step(workdir) is None or not path.exists():
    return None
  return upgrade(json.loads(path.read_text()))


def _flatten(
  recipe: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for key, value in recipe.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
