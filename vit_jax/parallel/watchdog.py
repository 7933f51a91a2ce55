"""Watches the processes of a job and ends all of them when one is lost.

Each process writes heartbeats to the key-value store of JAX's coordination
service, which process 0 hosts. Process 0 compares them. If one is missing, it
writes a verdict, which the other processes read before they end.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import time

import jax

from vit_jax.parallel.logs import log_to
from vit_jax.parallel.processes import (
  _PREFIX,
  _Job,
  barrier,
  check_shared_workdir,
  current_job,
)

# A process that fails waits so many seconds, in which the others read the
# reason.
_FAREWELL = 5.0
# Seconds to wait for the other processes at the end. The watchdog ends the job
# if one of them is lost in the meantime.
_DAY = 24 * 3600


@contextlib.contextmanager
def session(
  workdir: str | os.PathLike, orderly: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
  """Context manager for a run: logs its output, and ends the job as a whole.

  Process 0 writes to the console and to WORKDIR/log.txt, process I to
  WORKDIR/logs/process_I.txt. If WORKDIR is in a bucket, all write to their
  console only. If a process raises an exception or dies, all end with exit code
  1 within `lost_after` (60) seconds, and the message names that process. The
  same happens if no process makes progress for `stuck_after` seconds.

  Args:
    workdir: the run's directory.
    orderly: exceptions that all processes raise together, such as that of a
      preemption.

  Raises:
    ValueError: the processes do not share the workdir.
  """
  job = current_job()
  if job is None:
    with log_to(workdir):
      yield
    return
  watch = _Watch(job)
  watch.start()
  try:
    check_shared_workdir(workdir)
    with log_to(workdir):
      try:
        yield
      except orderly:
        barrier('the end', timeout=_DAY)
        watch.stop()
        raise
      except BaseException as e:
        watch.fail(e)
        raise
      barrier('the end', timeout=_DAY)
      watch.stop()
  except BaseException as e:
    if not isinstance(e, orderly):
      watch.fail(e)
    raise


class _Watch:
  """Threads that write and read heartbeats, and end the process.

  A heartbeat is the text 'NUMBER STEP': a number that grows, and the step of
  training.
  """

  def __init__(self, job: _Job):
    self._job = job
    self._stop = threading.Event()
    self._answered = time.monotonic()  # when the coordinator last answered
    self._failed = False
    self._period = min(2.0, job.lost_after / 10)
    # Of process 0: the last heartbeat of each process and when it came, and the
    # steps of all processes and when one of them last changed.
    self._heartbeats: dict[int, tuple[str | None, float]] = {}
    self._steps: tuple[list[int] | None, float] = (None, time.monotonic())

  def start(self) -> None:
    for target in (self._exchange, self._watch_coordinator):
      threading.Thread(target=target, daemon=True).start()

  def stop(self) -> None:
    self._stop.set()

  def fail(self, error: BaseException) -> None:
    """Tells the other processes why this one fails, and ends it soon after."""
    if self._failed:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # JAX also raises this error if another process has died. The wait lets
      # the watchdog name that process instead of this one.
      time.sleep(self._job.lost_after + 4 * self._period)
    self._failed = True
    reason = str(error).strip().splitlines() or ['']
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._job.put(
        f'failed/{self._job.process_id}', f'{type(error).__name__}: {reason[0]}'
      )
    # A normal exit would wait minutes for the other processes, in JAX.
    timer = threading.Timer(_FAREWELL, os._exit, (1,))
    timer.daemon = True
    timer.start()

  def _end(self, verdict: str) -> None:
    if self._stop.is_set() or self._failed:
      return
    print(f'error: {verdict}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    if self._job.process_id == 0:
      # Process 0 hosts the store, so it waits until the others have read the
      # verdict.
      time.sleep(min(_FAREWELL, 2 * self._period + 1))
    os._exit(1)

  def _exchange(self) -> None:
    """Writes heartbeats; process 0 writes the verdict, the others read it."""
    job, beat = self._job, 0
    while not self._stop.wait(self._period):
      beat += 1
      try:
        job.put(f'alive/{job.process_id}', f'{beat} {job.step}')
        if job.process_id == 0:
          verdict = self._judge()
          if verdict:
            job.put('verdict/0', verdict)
        else:
          verdict = self._read('verdict').get(0)
        self._answered = time.monotonic()
      except jax.errors.JaxRuntimeError:
        continue  # `_watch_coordinator` ends the process if this goes on
      if verdict:
        self._end(verdict)

  def _read(self, folder: str) -> dict[int, str]:
    """{process: the text that it has written to FOLDER/PROCESS}."""
    entries = self._job.client.key_value_dir_get(f'{_PREFIX}/{folder}')
    return {int(key.rsplit('/', 1)[1]): value for key, value in entries}

  def _judge(self) -> str:
    """The reason why the job must end, or ''. Runs in process 0."""
    job, now = self._job, time.monotonic()
    failed = self._read('failed')
    if failed:
      return '; '.join(
        f'{job.name(i)} failed: {failed[i]}' for i in sorted(failed)
      )
    alive = self._read('alive')
    for i in range(len(job.hosts)):
      beat = alive.get(i)
      if i not in self._heartbeats or self._heartbeats[i][0] != beat:
        self._heartbeats[i] = (beat, now)
    gone = [
      i
      for i, (_, when) in self._heartbeats.items()
      if now - when > job.lost_after
    ]
    if gone:
      return f'{job.names(gone)} is gone: no heartbeat for {job.lost_after:g} s'
    steps = [
      int(beat.split()[1]) if beat else -1
      for beat, _ in self._heartbeats.values()
    ]
    if steps != self._steps[0]:
      self._steps = (steps, now)
    if max(steps) >= 0 and now - self._steps[1] > job.stuck_after:
      behind = [i for i, step in enumerate(steps) if step == min(steps)]
      return (
        f'no progress for {job.stuck_after:g} s: {job.names(behind)} stands at '
        f'step {min(steps)}, the first at step {max(steps)}'
      )
    return ''

  def _watch_coordinator(self) -> None:
    """Ends the process if process 0 no longer answers."""
    while not self._stop.wait(self._period):
      if time.monotonic() - self._answered > self._job.lost_after:
        self._end(
          f'{self._job.name(0)}, the coordinator, is gone: no answer for '
          f'{self._job.lost_after:g} s'
        )
