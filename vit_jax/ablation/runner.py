"""Runs an ablation: all runs of its plan that are not finished."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import time
from typing import Any

from etils import epath
import jax

from vit_jax import train
from vit_jax.ablation.plan import PlannedRun, make_plan, variants
from vit_jax.ablation.processes import (
  Start,
  read_summary,
  run_side_by_side,
)
from vit_jax.ablation.results import Results
from vit_jax.files import as_path, write_atomically
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import ConfigError, to_json
from vit_jax.recipe.opening import build_run, checked
from vit_jax.recipe.stored import check_workdir
from vit_jax.report.runs import MEASURED
from vit_jax.text import duration


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
    seeds: runs of each variant that has no key 'seeds'.
    overrides: {key: value} for all variants, which replace a variant's values.
    only: names of the variants to run, None for all. The table has all
      variants.
    run_one: does a run, from its config and directory, and returns its summary.
    start: starts the process of one run; needed for jobs > 1.
    jobs: number of runs at a time.

  Returns:
    `Results.variants`.

  Raises:
    ConfigError: there is no such variant, or one does not fit the recipe. All
      variants are checked before the first run.
    Preempted: a run was told to stop, see `train_and_evaluate`.
  """
  plan = checked_plan(recipe, workdir, seeds, overrides, only)
  every = variants(recipe)
  workdir = as_path(workdir)
  results = Results(workdir, every)
  todo = []
  for number, run in enumerate(plan):
    summary = finished(run)
    if summary is not None:
      results.add(run, summary)
    elif not only or run.variant in only:
      todo.append(number)
  if run_one is train.train_and_evaluate:
    _check_data([plan[number] for number in todo], every)
  done = (
    ((number, _run_here(plan[number], run_one)) for number in todo)
    if jobs == 1
    else _side_by_side(plan, todo, every, start, jobs)
  )
  begin = time.monotonic()
  for count, (number, summary) in enumerate(done, start=1):
    results.add(plan[number], summary)
    results.write()
    left = len(todo) - count
    seconds = (time.monotonic() - begin) / count * left
    say(
      f'--- {plan[number].title} is done: {count} of {len(todo)} runs'
      + (f', about {duration(seconds)} left' if left else '')
    )
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
  """The plan of an ablation, after checks of all configs that will run.

  Nothing is written.

  Args:
    recipe, workdir, seeds, overrides, only: as in `run_variants`.

  Raises:
    ConfigError: a config does not pass the checks; the message names its
      variant.
  """
  if seeds < 1:
    raise ConfigError(f'seeds={seeds}: must be at least 1')
  every = variants(recipe)
  unknown = sorted(set(only or ()) - set(every))
  if unknown:
    raise ConfigError(
      f'no variant {unknown[0]!r}; the variants are {", ".join(every)}'
    )
  plan = make_plan(recipe, workdir, seeds, overrides or {})
  for run in plan:
    if run.seed == 0 and (not only or run.variant in only):
      try:
        check(run.config)
      except ConfigError as e:
        raise ConfigError(f'variant {run.variant!r}: {e}') from e
  return plan


def _side_by_side(
  plan: list[PlannedRun],
  todo: list[int],
  every: dict[str, dict[str, Any]],
  start: Start | None,
  jobs: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Does several runs at a time, see `run_side_by_side`."""
  if not todo:
    return
  if start is None:
    raise ValueError(f'jobs={jobs} needs a function that starts a process')
  say(f'{len(todo)} runs, {jobs} at a time; each writes to its own log.txt')
  yield from run_side_by_side(plan, todo, every, start, jobs)


def _check_data(
  runs: Sequence[PlannedRun], every: Mapping[str, Mapping[str, Any]]
) -> None:
  """Opens the data and builds the model of every variant, before the first run.

  Left out are variants that use the files of an earlier one, and recipes that
  prepare data before each run.

  Args:
    runs: those that will run.
    every: {name of a variant: its keys}.

  Raises:
    ConfigError: a variant does not fit its data; the message names the variant.
  """
  uses_earlier = lambda name: '{workdir}' in str(every[name])
  first = {run.variant: run for run in reversed(runs)}
  todo = [
    run
    for name, run in reversed(first.items())
    if run.prepare is None and not uses_earlier(name)
  ]
  for count, run in enumerate(todo, start=1):
    say(f'checking variant {count} of {len(todo)}: {run.variant}')
    try:
      config, _ = checked(run.config, run.directory)
      build_run(config, run.directory, None, _ignore)
    except (ValueError, OSError, RuntimeError) as e:
      raise ConfigError(f'variant {run.variant!r}: {e}') from e


def _ignore(line: str) -> None:
  """Notes about the data are printed when the run begins."""


def _run_here(run: PlannedRun, run_one: Callable) -> dict[str, Any]:
  """Does a run in this process; returns its summary or {'error': message}."""
  say(f'--- {run.title}')
  try:
    return do_run(run, run_one)
  except train.NonFinite as e:
    say(f'{run.title}: {e}')
    return {'error': str(e)}
  finally:
    # The next variant compiles programs of its own, so keeping those of this
    # one would only take memory.
    jax.clear_caches()


def do_run(
  run: PlannedRun, run_one: Callable = train.train_and_evaluate
) -> dict[str, Any]:
  """Runs `prepare` of the recipe, the training, and `measure` of the recipe.

  Args:
    run: the run.
    run_one: as in `run_variants`.

  Returns:
    The summary of `train_and_evaluate`. The results of `measure` are under
    'measured', and in measured.json in the directory of the run.
  """
  if run.prepare is not None and jax.process_index() == 0:
    run.prepare(run.config)
  summary = dict(run_one(run.config, run.directory))
  if run.measure is not None:
    measured = dict(run.measure(run.config, run.directory))
    write_atomically(
      run.directory / MEASURED, json.dumps(measured, indent=2) + '\n'
    )
    summary['measured'] = measured
  return summary


def finished(run: PlannedRun) -> dict[str, Any] | None:
  """The summary of a run that is finished, with the results of `measure`.

  Returns:
    The summary; None if the run or `measure` is not finished.

  Raises:
    ConfigError: the directory has a run of another recipe.
  """
  path = run.directory / 'summary.json'
  if not path.exists():
    return None
  check_workdir(run.directory, to_json(run.config))
  return read_summary(run)


def say(text: str) -> None:
  """Prints a text; only process 0 does."""
  if jax.process_index() == 0:
    print(text, flush=True)
