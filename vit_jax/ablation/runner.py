"""Runs the variants of a recipe that are not finished."""

from collections.abc import Callable, Mapping
import concurrent.futures
import json
import os
import queue
import threading
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from vit_jax import train
from vit_jax.ablation.plan import folder, make_plan, variants
from vit_jax.ablation.table import table
from vit_jax.recipe.keys import ConfigError, to_json
from vit_jax.recipe.stored import check_workdir
from vit_jax.training.progress import duration

DIVERGED = 4  # exit code of a single run whose loss became NaN


def run(
  recipe: str,
  workdir,
  *,
  seeds: int = 3,
  common: Mapping[str, Any] | None = None,
  only: list[str] | None = None,
  run_one: Callable = train.train_and_evaluate,
  start: Callable | None = None,
  jobs: int = 1,
) -> dict[str, Any]:
  """Runs all variants of a recipe that are not finished.

  Args:
    recipe: 'configs/X.py:ARG'.
    workdir: of the whole; each run gets a directory in it.
    seeds: runs of each variant.
    common: {key: value} for all variants, stronger than theirs.
    only: names of the variants to run; all are in the table.
    run_one: (config, workdir) -> summary.
    start: (number in the plan, cores or None, log file) -> a started
      `subprocess.Popen` that does one run; for jobs > 1.
    jobs: runs at a time.

  Returns:
    {name: {'overrides', 'runs': [{'seed', 'workdir', 'results' or 'error'}],
    'mean', 'std'}}; means and deviations are of '{set} top-1'.

  Raises:
    ConfigError: no such variant, or one that does not fit the recipe; all are
      looked at before the first run.
    Preempted: as `train_and_evaluate`.
  """
  workdir = epath.Path(workdir)
  if seeds < 1:
    raise ConfigError(f'seeds={seeds}: must be at least 1')
  every = variants(recipe)
  unknown = sorted(set(only or ()) - set(every))
  if unknown:
    raise ConfigError(
      f'no variant {unknown[0]!r}; there are {", ".join(every)}'
    )
  plan = make_plan(recipe, workdir, seeds, common or {})
  found = {
    name: {'overrides': overrides, 'runs': []}
    for name, overrides in every.items()
  }
  place = lambda name, k: workdir / folder(name) / f'seed{k}'
  todo = []
  for number, (name, k, config) in enumerate(plan):
    summary = finished(place(name, k), config)
    if summary is not None:
      _record(found, name, k, place(name, k), summary)
    elif not only or name in only:
      todo.append(number)
  if jobs == 1:
    for number in todo:
      name, k, config = plan[number]
      _say(f'--- run {number + 1} of {len(plan)}: {name}, seed {k}')
      try:
        summary = run_one(config, place(name, k))
      except train.NonFinite as e:
        _say(f'{name}, seed {k}: {e}')
        summary = {'error': str(e)}
      jax.clear_caches()
      _record(found, name, k, place(name, k), summary)
      _write(workdir, found)
  else:
    for number, summary in _side_by_side(plan, todo, every, place, start, jobs):
      name, k, _ = plan[number]
      _record(found, name, k, place(name, k), summary)
      _write(workdir, found)
  if not todo:  # nothing was written on the way
    _write(workdir, found)
  return found


def _side_by_side(plan, todo, every, place, start, jobs: int):
  """Yields (number, summary) of the runs in `todo` as they end.

  A run waits for those of the variants whose directory its values name.
  """
  if jax.default_backend() != 'cpu':
    raise ConfigError(
      f'jobs={jobs}: only on a CPU; every run takes all of '
      f'the {jax.device_count()} {jax.default_backend()} '
      'devices. Take jobs=1.'
    )
  cores = (
    sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  )
  shares = queue.SimpleQueue()
  for i in range(jobs):
    shares.put(cores[i::jobs] or None)
  ended, processes = {}, {}
  starting, stopped = threading.Lock(), threading.Event()

  def needed(name):
    text = json.dumps(every[name], default=str)
    return [
      ended[n]
      for n in todo
      if f'{{workdir}}/{folder(plan[n][0])}/' in text and n in ended
    ]

  def one(number, before):
    for other in before:
      other.result()  # raises its error
    name, k, _ = plan[number]
    directory = place(name, k)
    directory.mkdir(parents=True, exist_ok=True)
    share, began = shares.get(), time.time()
    try:
      with (directory / 'log.txt').open('a') as log:
        with starting:
          if stopped.is_set():
            raise concurrent.futures.CancelledError
          _say(
            f'--- run {number + 1} of {len(plan)}: {name}, seed {k} '
            f'({directory}/log.txt)'
          )
          processes[number] = start(number, share, log)
        code = processes[number].wait()
    finally:
      shares.put(share)
    log = (directory / 'log.txt').read_text().strip().splitlines() or ['']
    if code == DIVERGED:
      summary = {'error': log[-1]}
    elif code == 3:
      raise train.Preempted(f'{name}, seed {k}: {log[-1]}')
    elif code:
      raise RuntimeError(
        f'{name}, seed {k}, ended with exit code {code}: {log[-1]}'
      )
    else:
      summary = json.loads((directory / 'summary.json').read_text())
    scores = '  '.join(
      f'{s} {v["top1"]:.2%}' for s, v in summary.get('results', {}).items()
    )
    _say(
      f'    run {number + 1} ended after '
      f'{duration(time.time() - began)}: '
      f'{scores or summary["error"]}'
    )
    return number, summary

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for number in todo:
      ended[number] = pool.submit(one, number, needed(plan[number][0]))
    try:
      for future in concurrent.futures.as_completed(ended.values()):
        yield future.result()
    except BaseException:
      with starting:
        stopped.set()
      for future in ended.values():
        future.cancel()
      for process in processes.values():
        process.terminate()  # they save, and go on next time
      raise


def _record(found, name: str, k: int, directory, summary):
  runs = found[name]['runs']
  runs.append(
    {
      'seed': k,
      'workdir': str(directory),
      **{
        x: summary[x]
        for x in (
          'results',
          'error',
          'seconds',
          'parameters',
          'gmacs',
          'img_per_sec',
        )
        if summary.get(x)
      },
    }
  )
  runs.sort(key=lambda r: r['seed'])
  _summarise(found[name])


def finished(directory, config) -> dict[str, Any] | None:
  """The summary of a run that is done; ConfigError if of another recipe."""
  path = epath.Path(directory) / 'summary.json'
  if not path.exists():
    return None
  check_workdir(directory, to_json(config))
  return json.loads(path.read_text())


def _summarise(variant: dict[str, Any]):
  """Adds mean and spread of the test scores over the runs."""
  scores = {}
  for one in variant['runs']:
    for name, values in one.get('results', {}).items():
      scores.setdefault(f'{name} top-1', []).append(values['top1'])
  variant['mean'] = {k: float(np.mean(v)) for k, v in scores.items()}
  variant['std'] = {
    k: float(np.std(v, ddof=1)) for k, v in scores.items() if len(v) > 1
  }
  for key in ('parameters', 'gmacs', 'img_per_sec'):
    values = [r[key] for r in variant['runs'] if key in r]
    if values:
      variant[key] = float(np.mean(values))


def _write(workdir, found):
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'ablation.json').write_text(json.dumps(found, indent=2) + '\n')
    (workdir / 'ablation.md').write_text(table(found) + '\n')


def _say(text: str):
  if jax.process_index() == 0:
    print(text, flush=True)
