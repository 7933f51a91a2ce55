"""Reads what training runs wrote into their workdirs."""

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

from etils import epath

from vit_jax.files import as_path, list_directory, read_text
from vit_jax.recipe.keys import default_config
from vit_jax.recipe.overrides import override
from vit_jax.recipe.sections import Config
from vit_jax.recipe.stored import upgrade
from vit_jax.training.writers import sound_lines

# What an ablation measures after a run, {column: value}, in its workdir.
MEASURED = 'measured.json'
_DEPTH = 3  # folders below a given one in which runs are searched
# Keys that say where a run is and how it is watched, and not what it learns.
_UNIMPORTANT = ('log.', 'run.name', 'run.resume', 'data.dir', 'data.threads')


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir says about its run.

  Attributes:
    name: the shortest end of the path that no other run has.
    workdir: path.
    recipe: {'section.key': value}, with all keys of this version.
    metrics: the lines of metrics.jsonl, each with 'step', 'epoch', 'seconds'.
    summary: summary.json; empty while the run goes on.
    measured: {column: value} of what an ablation measures after the run, such
      as a few-shot accuracy in per cent.
  """

  name: str
  workdir: str
  recipe: dict[str, Any]
  metrics: list[dict[str, Any]]
  summary: dict[str, Any]
  measured: dict[str, float] = dataclasses.field(default_factory=dict)

  def series(self, key: str) -> list[tuple[dict[str, Any], float]]:
    """The lines that have a metric, each with its value."""
    # A loss that is not finite is written as a text, such as 'nan'.
    return [(x, float(x[key])) for x in self.metrics if key in x]

  def results(self) -> dict[str, dict[str, float]]:
    """{eval set: {'top1', 'loss', ...}}, of the newest evaluation."""
    if self.summary.get('results'):
      return self.summary['results']
    results: dict[str, dict[str, float]] = {}
    for line in self.metrics:
      for key in line:
        name, _, metric = key.rpartition('_')
        if metric == 'top1' and name != 'train':
          results[name] = {
            other.removeprefix(f'{name}_'): float(x)
            for other, x in line.items()
            if other.startswith(f'{name}_')
          }
    return results

  @property
  def step(self) -> int:
    """The last step that is in the metrics."""
    return max((line['step'] for line in self.metrics), default=0)

  def config(self) -> Config:
    """The recipe, with all keys, as the functions of `recipe` take it."""
    config = default_config()
    override(
      config, {k: v for k, v in self.recipe.items() if v not in (None, {})}
    )
    return config


def find_workdirs(path: str | os.PathLike) -> list[epath.Path]:
  """The workdirs in a folder, which may be one itself, in order of names.

  Raises:
    ValueError: there is none.
  """
  root = as_path(path)
  result = _search(root, _DEPTH)
  if not result:
    raise ValueError(
      f'{root} is no workdir, and has none in it: a workdir has the file '
      'config.json of its run. Give the --workdir of the run'
    )
  return result


def _search(folder: epath.Path, depth: int) -> list[epath.Path]:
  if (folder / 'config.json').exists():
    return [folder]
  if not depth:
    return []
  entries = sorted(list_directory(folder), key=str)
  return [
    run
    for entry in entries
    if entry.is_dir() and not entry.name.startswith('.')
    for run in _search(entry, depth - 1)
  ]


def read_runs(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
  """Reads the runs of some workdirs, and of folders of workdirs.

  Raises:
    ValueError: there is no workdir, or its recipe cannot be read.
  """
  paths = dict.fromkeys(
    str(path) for folder in workdirs for path in find_workdirs(folder)
  )
  names = short_names(list(paths))
  return [
    _read_run(as_path(path), name)
    for path, name in zip(paths, names, strict=True)
  ]


def short_names(paths: Sequence[str]) -> list[str]:
  """The last folders of each path, as many as it takes to tell them apart."""
  words = [[x for x in path.split('/') if x not in ('', '.')] for path in paths]
  longest = max((len(x) for x in words), default=1)
  for count in range(1, longest + 1):
    names = ['/'.join(x[-count:]) for x in words]
    if len(set(names)) == len(names):
      return names
  return list(paths)


def _read_run(workdir: epath.Path, name: str) -> Run:
  path = workdir / 'config.json'
  try:
    recipe = json.loads(read_text(path))
    if not {'run', 'model'} <= recipe.keys():
      raise ValueError('it has no sections run and model')
    recipe = upgrade(recipe)
  except (ValueError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} is not the recipe of a run: {e}') from e
  summary = _read_json(workdir / 'summary.json')
  metrics = [line for _, line in sound_lines(workdir / 'metrics.jsonl')]
  # After a run was extended, its old summary stands until it ends again.
  if metrics and summary.get('step', 0) < max(x['step'] for x in metrics):
    summary = {}
  measured = _read_json(workdir / MEASURED)
  return Run(name, str(workdir), recipe, metrics, summary, measured)


def _read_json(path: epath.Path) -> dict[str, Any]:
  """The values of a file, or none if there is no file."""
  if not path.exists():
    return {}
  try:
    return json.loads(read_text(path))
  except ValueError as e:
    raise ValueError(f'{path} is damaged: {e}') from e


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """The keys of the recipes in which runs differ, with the value of each run.

  Keys that say only where a run is and how it is watched are left out.
  """
  keys = dict.fromkeys(key for run in runs for key in run.recipe)
  result = {}
  for key in keys:
    values = [run.recipe.get(key) for run in runs]
    if not key.startswith(_UNIMPORTANT) and any(x != values[0] for x in values):
      result[key] = values
  return result
