"""The recipe that a workdir stores, held against the one at hand."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from etils import epath

from vit_jax.models.registry import model_info
from vit_jax.recipe.keys import ConfigError, default_config, to_json
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


# What version 0.1.0 did without a key for it, where that is not the default.
_VERSION_0_1_0 = {
  'optim.ema_ramp': True,  # the decay of the average always began faster
  'optim.ema_stats': False,  # BatchNorm statistics were not averaged
  'model.bn_unbiased': False,  # of models with BatchNorm: running variances
}


def _flatten(config_json, prefix=''):
  for key, value in config_json.items():
    if isinstance(value, dict) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _stored(workdir) -> dict[str, Any] | None:
  """The flat recipe of the run in a workdir; None if there is no run."""
  path = epath.Path(workdir) / 'config.json'
  if find_step(workdir) is None or not path.exists():
    return None
  return dict(_flatten(json.loads(path.read_text())))


def _earlier(stored: Mapping[str, Any], model: str) -> dict[str, Any]:
  """The keys that a stored recipe of version 0.1.0 lacks, as it meant them."""
  if 'optim.ema_ramp' in stored:
    return {}
  fields = {
    field.name for field in dataclasses.fields(model_info(model).module)
  }
  return {
    key: value
    for key, value in _VERSION_0_1_0.items()
    if not key.startswith('model.') or key.split('.')[1] in fields
  }


def adopt_earlier(config: Config, workdir: str) -> list[str]:
  """Sets what a run of an earlier version did without a key for it.

  Args:
    config: the recipe at hand, changed in place.
    workdir: of the run that goes on; nothing happens if there is none.

  Returns:
    'key=value' of every key of `config` that was changed.
  """
  stored = _stored(workdir)
  changed = []
  for key, value in _earlier(stored or {}, config.model.name).items():
    section, name = key.split('.')
    if stored and config[section].get(name) != value:
      config[section][name] = value
      changed.append(f'{key}={value}')
  return changed


def check_workdir(workdir, config_json) -> None:
  """ConfigError if the workdir holds a run of another recipe."""
  stored = _stored(workdir)
  if stored is None:
    return
  # A stored recipe lacks the keys that are newer than it.
  defaults = dict(_flatten(to_json(default_config())))
  earlier = _earlier(stored, config_json['model']['name'])
  old = {**defaults, **earlier, **stored}
  new = dict(_flatten(config_json))
  different = [
    f'{k}: {old.get(k)} there, {new.get(k)} now'
    for k in sorted({*old, *new})
    if old.get(k) != new.get(k)
    and not any(k == m or k.startswith(f'{m}.') for m in _MAY_CHANGE)
  ]
  if different:
    raise ConfigError(
      f'{workdir} belongs to another recipe ({"; ".join(different[:4])}'
      f'{"; ..." if len(different) > 4 else ""}). Nothing was changed. Take '
      'another --workdir; to go on from that run with new settings, give it '
      f'as --config.run.resume={workdir}'
    )
