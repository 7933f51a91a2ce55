"""Runs the variants of a recipe that are not finished."""

from collections.abc import Callable, Mapping
import json
from typing import Any

from etils import epath
import jax

from vit_jax import train
from vit_jax.ablation.plan import PlannedRun, make_plan, variants
from vit_jax.ablation.processes import (
  MEASURED,
  Start,
  read_summary,
  run_side_by_side,
)
from vit_jax.ablation.results import Results
from vit_jax.files import write_atomically
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import ConfigError, to_json
from vit_jax.recipe.stored import check_workdir


def run_variants(
  recipe: str,
  workdir: str | epath.Path,
  *,
  seeds: int = 3,
  overrides: Mapping[str, Any] | None = None,
  only: list[str] | None = None,
  run_one: Callable = train.train_and_evaluate,
  start: Start | None = None,
  jobs: int = 1,
) -> dict[str, Any]:
  """Runs all variants of a recipe that are not finished.

  Args:
    recipe: 'configs/X.py:ARG'.
    workdir: directory of the ablation; each run gets a directory in it.
    seeds: runs of each variant.
    overrides: {key: value} for all variants; they win over a variant's own.
    only: names of the variants to run; the table shows all.
    run_one: (config, directory) -> summary.
    start: starts a process that does one run; for jobs > 1.
    jobs: runs at a time.

  Returns:
    `Results.variants`.

  Raises:
    ConfigError: no such variant, or one that does not fit the recipe. All
      variants are checked before the first run.
    Preempted: as `train_and_evaluate`.
  """
  plan = checked_plan(recipe, workdir, seeds, overrides, only)
  every = variants(recipe)
  workdir = epath.Path(workdir)
  results = Results(workdir, every)
  todo = []
  for number, run in enumerate(plan):
    summary = finished(run)
    if summary is not None:
      results.add(run, summary)
    elif not only or run.variant in only:
      todo.append(number)
  if jobs == 1:
    for number in todo:
      say(f'--- run {number + 1} of {len(plan)}: {plan[number].title}')
      results.add(plan[number], _run_here(plan[number], run_one))
      results.write()
  elif todo:
    if start is None:
      raise ValueError(f'jobs={jobs} needs a function that starts a process')
    for number, summary in run_side_by_side(plan, todo, every, start, jobs):
      results.add(plan[number], summary)
      results.write()
  if not todo:
    results.write()
  return results.variants


def checked_plan(
  recipe: str,
  workdir: str | epath.Path,
  seeds: int,
  overrides: Mapping[str, Any] | None = None,
  only: list[str] | None = None,
) -> list[PlannedRun]:
  """The plan of an ablation, with every config that will run checked.

  See `run_variants` for the arguments. Nothing is written. ConfigError names
  the variant of a mistake.
  """
  if seeds < 1:
    raise ConfigError(f'seeds={seeds}: must be at least 1')
  every = variants(recipe)
  unknown = sorted(set(only or ()) - set(every))
  if unknown:
    raise ConfigError(
      f'no variant {unknown[0]!r}; there are {", ".join(every)}'
    )
  plan = make_plan(recipe, workdir, seeds, overrides or {})
  for run in plan:
    if run.seed == 0 and (not only or run.variant in only):
      try:
        check(run.config)
      except ConfigError as e:
        raise ConfigError(f'variant {run.variant!r}: {e}') from e
  return plan


def _run_here(run: PlannedRun, run_one: Callable) -> dict[str, Any]:
  """The summary of a run in this process, or its {'error': message}."""
  try:
    return do_run(run, run_one)
  except train.NonFinite as e:
    say(f'{run.title}: {e}')
    return {'error': str(e)}
  finally:
    jax.clear_caches()  # the next variant compiles its own programs


def do_run(
  run: PlannedRun, run_one: Callable = train.train_and_evaluate
) -> dict[str, Any]:
  """Trains and evaluates one run, and takes the measures of its recipe.

  Returns:
    The summary of `train_and_evaluate`, with the measures as 'measured'. They
    are also kept in measured.json in the run's directory.
  """
  summary = dict(run_one(run.config, run.directory))
  if run.measure is not None:
    measured = dict(run.measure(run.config, run.directory))
    write_atomically(
      run.directory / MEASURED, json.dumps(measured, indent=2) + '\n'
    )
    summary['measured'] = measured
  return summary


def finished(run: PlannedRun) -> dict[str, Any] | None:
  """The summary of a run that is done and measured, else None.

  ConfigError if the directory holds a run of another recipe.
  """
  path = run.directory / 'summary.json'
  if not path.exists():
    return None
  check_workdir(run.directory, to_json(run.config))
  return read_summary(run)


def say(text: str) -> None:
  """Prints on process 0."""
  if jax.process_index() == 0:
    print(text, flush=True)
