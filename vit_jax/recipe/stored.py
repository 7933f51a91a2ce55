"""The recipe that a workdir stores, held against the one at hand."""

import json

from etils import epath

from vit_jax.recipe.keys import ConfigError
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


def _flatten(config_json, prefix=''):
  for key, value in config_json.items():
    if isinstance(value, dict) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def check_workdir(workdir, config_json) -> None:
  """ConfigError if the workdir holds a run of another recipe."""
  path = epath.Path(workdir) / 'config.json'
  if find_step(workdir) is None or not path.exists():
    return
  old, new = (
    dict(_flatten(json.loads(path.read_text()))),
    dict(_flatten(config_json)),
  )
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
