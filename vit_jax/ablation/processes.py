"""Runs several runs of an ablation at a time, each in a process, on a CPU."""

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
from vit_jax.report.runs import MEASURED
from vit_jax.text import duration

# Exit codes of the process of a run.
DIVERGED = 4  # the loss became NaN
PREEMPTED = 3  # it was told to stop, and saved its state

# A function that starts the process of one run, from the number of the run in
# the plan, the CPU cores for it (None for all) and its log file.
Start = Callable[[int, list[int] | None, IO[str]], subprocess.Popen]


def run_side_by_side(
  plan: list[PlannedRun],
  todo: list[int],
  variants: Mapping[str, Mapping[str, Any]],
  start: Start,
  jobs: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Does runs of a plan, `jobs` at a time.

  If a value of a variant contains the directory of another variant, its runs
  wait for those of the other, as a student waits for its teacher.

  Args:
    plan: all runs.
    todo: numbers of the runs to do, in the plan.
    variants: {name of a variant: its keys and values}.
    start: starts the process of one run.
    jobs: number of runs at a time, which share the CPU cores equally.

  Yields:
    (number in the plan, summary) of each run when it ends.

  Raises:
    ConfigError: the devices are not CPUs.
    RuntimeError: a run failed. The others are told to stop; they save their
      state, and continue when the ablation is started again.
    Preempted: a run was told to stop.
  """
  if jax.default_backend() != 'cpu':
    raise ConfigError(
      f'jobs={jobs} works only on a CPU, because every run uses all of the '
      f'{jax.device_count()} {jax.default_backend()} devices: use --jobs=1'
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
  """The CPU cores of each job; None where the system cannot assign cores."""
  if not hasattr(os, 'sched_getaffinity'):
    return [None] * jobs
  cores = sorted(os.sched_getaffinity(0))
  return [cores[i::jobs] or None for i in range(jobs)]


class _Runs:
  """Does the runs of a plan in processes, and can stop all of them."""

  def __init__(
    self, plan: list[PlannedRun], start: Start, shares: list[list[int] | None]
  ):
    self._plan, self._start = plan, start
    self._shares: queue.SimpleQueue = queue.SimpleQueue()
    for share in shares:
      self._shares.put(share)
    self._processes: list[subprocess.Popen] = []
    # Held while a process is started, so that a process is either in the list
    # when `stop` reads it, or is not started at all.
    self._starting = threading.Lock()
    self._stopped = False

  def stop(self) -> None:
    """Tells all processes to save and end, and starts no more."""
    with self._starting:
      self._stopped = True
    for process in self._processes:
      process.terminate()

  def run(
    self, number: int, before: list[concurrent.futures.Future]
  ) -> tuple[int, dict[str, Any]]:
    """Does one run.

    Args:
      number: number of the run in the plan.
      before: the runs that must end before this one starts.

    Returns:
      The number, and the summary of the run or its {'error': message}.
    """
    for future in before:
      future.result()  # raises the error of that run if it failed
    run = self._plan[number]
    run.directory.mkdir(parents=True, exist_ok=True)
    log_path = run.directory / 'log.txt'
    share, began = self._shares.get(), time.monotonic()
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
      f'    run {number + 1} ended after {duration(time.monotonic() - began)}: '
      f'{scores or summary["error"]}',
      flush=True,
    )
    return number, summary


def _summary(run: PlannedRun, code: int) -> dict[str, Any]:
  """The summary of a run whose process ended, or {'error': message}."""
  log = (run.directory / 'log.txt').read_text().strip().splitlines() or ['']
  if code == DIVERGED:
    return {'error': log[-1]}
  if code == PREEMPTED:
    raise train.Preempted(f'{run.title}: {log[-1]}')
  if code:
    raise RuntimeError(
      f'{run.title}: it ended with exit code {code}: {log[-1]}'
    )
  summary = read_summary(run)
  if summary is None:
    raise RuntimeError(f'{run.title}: it ended without a summary: {log[-1]}')
  return summary


def read_summary(run: PlannedRun) -> dict[str, Any] | None:
  """The summary of a run from its directory, with the results of `measure`.

  None if these results are missing.
  """
  summary = json.loads((run.directory / 'summary.json').read_text())
  if run.measure is not None:
    if not (run.directory / MEASURED).exists():
      return None
    summary['measured'] = json.loads((run.directory / MEASURED).read_text())
  return summary
