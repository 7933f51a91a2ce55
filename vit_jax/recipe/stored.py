"""The recipe that a workdir stores, held against the one at hand."""

import json
from typing import Any

from etils import epath

from vit_jax.recipe.keys import ConfigError, default_config, to_json
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


# Keys that earlier versions did not have and whose default is not what those
# versions did: the value that a stored recipe without the key stands for.
_EARLIER = {
  'optim.ema_ramp': True,  # 0.1.0: the decay of the average always began faster
  'optim.ema_stats': False,  # 0.1.0: BatchNorm statistics were not averaged
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


def adopt_earlier(config, workdir) -> list[str]:
  """Sets what a run of an earlier version did without a key for it.

  Returns:
    'key=value' of every key of `config` that was changed.
  """
  stored = _stored(workdir)
  changed = []
  for key, value in _EARLIER.items():
    section, name = key.split('.')
    if stored and key not in stored and config[section][name] != value:
      config[section][name] = value
      changed.append(f'{key}={value}')
  return changed


def check_workdir(workdir, config_json) -> None:
  """ConfigError if the workdir holds a run of another recipe."""
  stored = _stored(workdir)
  if stored is None:
    return
  # A stored recipe lacks the keys that are newer than it.
  old = {**dict(_flatten(to_json(default_config()))), **_EARLIER, **stored}
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
