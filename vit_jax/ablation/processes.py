"""Runs of an ablation side by side on a CPU, each in a process of its own."""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import json
import os
import queue
import subprocess
import threading
import time
from typing import IO, Any

import jax

from vit_jax import train
from vit_jax.ablation.plan import PlannedRun, folder
from vit_jax.recipe.keys import ConfigError
from vit_jax.text import duration

DIVERGED = 4  # exit code of a single run whose loss became NaN
PREEMPTED = 3
MEASURED = 'measured.json'  # in the directory of a run, if its recipe measures

# (number in the plan, CPU cores or None, log file) -> a started process that
# does this one run.
Start = Callable[[int, list[int] | None, IO[str]], subprocess.Popen]


def run_side_by_side(
  plan: list[PlannedRun],
  todo: list[int],
  variants: Mapping[str, Mapping[str, Any]],
  start: Start,
  jobs: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, summary) of runs as they end, `jobs` at a time.

  A run waits for the runs of those variants whose directory its values name,
  such as the student for its teacher.

  Args:
    plan: all runs.
    todo: numbers in the plan of those to do.
    variants: values of the variants, by name.
    start: starts one run.
    jobs: how many run at a time; each gets an equal share of the CPU cores.

  Raises:
    ConfigError: the devices are not CPUs.
    RuntimeError: a run failed. The others are told to stop; they save their
      state, and continue when the ablation is started again.
    Preempted: a run was asked to stop.
  """
  if jax.default_backend() != 'cpu':
    raise ConfigError(
      f'jobs={jobs} works only on a CPU: every run takes all of the '
      f'{jax.device_count()} {jax.default_backend()} devices. Take jobs=1'
    )
  runs = _Runs(plan, start, _shares_of_cores(jobs))
  ended: dict[int, concurrent.futures.Future] = {}
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for number in todo:
      text = json.dumps(variants[plan[number].variant], default=str)
      before = [
        future
        for other, future in ended.items()
        if f'{{workdir}}/{folder(plan[other].variant)}/' in text
      ]
      ended[number] = pool.submit(runs.run, number, before)
    try:
      for future in concurrent.futures.as_completed(ended.values()):
        yield future.result()
    except BaseException:
      runs.stop()
      for future in ended.values():
        future.cancel()
      raise


def _shares_of_cores(jobs: int) -> list[list[int] | None]:
  """The CPU cores of each of the jobs; None where cores cannot be assigned."""
  if not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [cores[i::jobs] or None for i in range(jobs)]


class _Runs:
  """Starts processes, and stops all of them at once."""

  def __init__(
    self, plan: list[PlannedRun], start: Start, shares: list[list[int] | None]
  ):
    self._plan, self._start = plan, start
    self._shares: queue.SimpleQueue = queue.SimpleQueue()
    for share in shares:
      self._shares.put(share)
    self._processes: list[subprocess.Popen] = []
    # Held while a process starts, so that `stop` sees each one or prevents it.
    self._starting = threading.Lock()
    self._stopped = False

  def stop(self) -> None:
    """Asks all processes to save and end, and starts no others."""
    with self._starting:
      self._stopped = True
    for process in self._processes:
      process.terminate()

  def run(self, number: int, before) -> tuple[int, dict[str, Any]]:
    """Does one run after those it needs; (number, summary or error)."""
    for future in before:
      future.result()  # raises the error of the run it needs
    run = self._plan[number]
    run.directory.mkdir(parents=True, exist_ok=True)
    log_path = run.directory / 'log.txt'
    share, began = self._shares.get(), time.time()
    try:
      with log_path.open('a') as log:
        with self._starting:
          if self._stopped:
            raise concurrent.futures.CancelledError
          print(
            f'--- run {number + 1} of {len(self._plan)}: {run.title} '
            f'({log_path})',
            flush=True,
          )
          process = self._start(number, share, log)
          self._processes.append(process)
        code = process.wait()
    finally:
      self._shares.put(share)
    summary = _summary(run, code)
    scores = '  '.join(
      f'{name} {values["top1"]:.2%}'
      for name, values in summary.get('results', {}).items()
    )
    print(
      f'    run {number + 1} ended after {duration(time.time() - began)}: '
      f'{scores or summary["error"]}',
      flush=True,
    )
    return number, summary


def _summary(run: PlannedRun, code: int) -> dict[str, Any]:
  """What a run's process left: its summary, or the error of a diverged run."""
  log = (run.directory / 'log.txt').read_text().strip().splitlines() or ['']
  if code == DIVERGED:
    return {'error': log[-1]}
  if code == PREEMPTED:
    raise train.Preempted(f'{run.title}: {log[-1]}')
  if code:
    raise RuntimeError(f'{run.title}, ended with exit code {code}: {log[-1]}')
  summary = read_summary(run)
  if summary is None:
    raise RuntimeError(f'{run.title}, ended without a summary: {log[-1]}')
  return summary


def read_summary(run: PlannedRun) -> dict[str, Any] | None:
  """The summary that a run left, with its measures; None if one is missing."""
  summary = json.loads((run.directory / 'summary.json').read_text())
  if run.measure is not None:
    if not (run.directory / MEASURED).exists():
      return None
    summary['measured'] = json.loads((run.directory / MEASURED).read_text())
  return summary
