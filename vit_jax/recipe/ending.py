"""The last lines of a run: its accuracy, its checkpoint and what comes next."""

from collections.abc import Mapping, Sequence
import os
import shlex
from typing import Any

from vit_jax.files import as_path
from vit_jax.recipe.sections import Config
from vit_jax.weights.steps import FOLDER, list_steps


def ending(
  config: Config,
  workdir: str | os.PathLike,
  summary: Mapping[str, Any],
  best: Mapping[str, tuple[float, int]],
) -> str:
  """The lines that a finished run prints, whichever command started it.

  Args:
    config: the recipe.
    workdir: the run's directory.
    summary: has 'results' of the eval sets, and 'step'.
    best: {eval set: (best top-1 accuracy so far, its step)}.
  """
  lines = []
  for name, result in summary['results'].items():
    line = (
      f'accuracy: {result["top1"]:.2%} of {result["examples"]:.0f} {name} '
      'images'
    )
    accuracy, step = best.get(name, (result['top1'], summary['step']))
    if accuracy > result['top1']:
      line += f'; the best was {accuracy:.2%} at step {step}'
    lines.append(line)
  if not summary['results']:
    lines.append('accuracy: not known, because no images are held out')
  steps = list_steps(as_path(workdir) / FOLDER)
  where = shlex.quote(os.fspath(workdir))
  lines += _checkpoints(steps, best)
  # Every program that trains takes keys; only some have --more-epochs.
  lines.append(
    'go on:    the same command with --more-epochs N (--config.run.extend=N)'
  )
  lines.append(f'predict:  vit-jax predict {where} IMAGE...')
  lines.append(f'evaluate: vit-jax evaluate {where} {_data(config)}')
  lines.append(f'report:   vit-jax report {where} -o report.html')
  return '\n'.join(lines)


def _checkpoints(
  steps: Sequence[os.PathLike], best: Mapping[str, tuple[float, int]]
) -> list[str]:
  """Which steps are kept, and which of them the other commands take."""
  if not steps:
    return []
  last = f'checkpoint: {os.fspath(steps[-1])}'
  accuracy, step = next(iter(best.values()), (0.0, -1))
  kept = [path for path in steps if os.path.basename(path) == str(step)]
  if not kept:
    return [f'{last}: the last one, which predict takes']
  if kept[0] == steps[-1]:
    return [f'{last}: the last and the best one, which predict takes']
  return [
    f'{last}: the last one, which predict takes',
    f'best:     {os.fspath(kept[0])} with {accuracy:.2%}: predict takes it if '
    'its path is given in place of the workdir',
  ]


def _data(config: Config) -> str:
  """The options of `vit-jax evaluate` for the data of a recipe."""
  data = f'--data {shlex.quote(config.data.dir)}' if config.data.dir else ''
  if config.data.source in ('folder', 'packed'):
    return data
  return f'--source {config.data.source} {data}'.rstrip()
