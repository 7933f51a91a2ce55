"""Watches the processes of a job and ends all when one is lost."""

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

_FAREWELL = 5.0  # seconds in which the others read of this process's failure


@contextlib.contextmanager
def session(workdir, orderly: tuple[type[BaseException], ...] = ()):
  """What surrounds the work of a process: its log, and a common end.

  Process 0 writes to the console and to WORKDIR/log.txt, the others to
  WORKDIR/logs/process_I.txt (to their own console if WORKDIR is a bucket). If
  one raises, dies or stands still, all end with exit code 1, naming it,
  `lost_after` (60) seconds later at most.

  Args:
    workdir: of the run; ValueError if the processes do not share it.
    orderly: exceptions that all processes raise together, such as a
      preemption that they agreed on.
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
        barrier('the end', timeout=24 * 3600)
        watch.stop()
        raise
      except BaseException as e:
        watch.fail(e)
        raise
      barrier('the end', timeout=24 * 3600)  # the watch ends it if one is lost
      watch.stop()
  except BaseException as e:
    if not isinstance(e, orderly):
      watch.fail(e)
    raise


class _Watch:
  """Threads that give and look for signs of life, and end the process."""

  def __init__(self, job: _Job):
    self._job = job
    self._stop = threading.Event()
    self._answered = time.monotonic()  # when the coordinator last did
    self._failed = False
    self._period = min(2.0, job.lost_after / 10)

  def start(self):
    for target in (self._exchange, self._coordinator):
      threading.Thread(target=target, daemon=True).start()

  def stop(self):
    self._stop.set()

  def fail(self, error: BaseException):
    """Tells the others why this process ends, and makes sure that it does."""
    if self._failed:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # Perhaps only the echo of another's death, which will be noticed.
      time.sleep(self._job.lost_after + 4 * self._period)
    self._failed = True
    reason = str(error).strip().splitlines() or ['']
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._job.put(
        f'failed/{self._job.process_id}', f'{type(error).__name__}: {reason[0]}'
      )
    # JAX would wait minutes at exit for the others.
    timer = threading.Timer(_FAREWELL, os._exit, (1,))
    timer.daemon = True
    timer.start()

  def _end(self, verdict: str):
    if self._stop.is_set() or self._failed:
      return
    print(f'error: {verdict}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    if self._job.process_id == 0:
      time.sleep(min(_FAREWELL, 2 * self._period + 1))  # the others read it
    os._exit(1)

  def _exchange(self):
    """Writes this process's sign of life; reads the verdict, or finds it."""
    job, beat = self._job, 0
    seen = {}  # process: (its last sign, when it changed)
    moved = (None, time.monotonic())  # steps of all, when they changed
    while not self._stop.wait(self._period):
      beat += 1
      try:
        job.put(f'alive/{job.process_id}', f'{beat} {job.step}')
        if job.process_id == 0:
          verdict, moved = self._judge(seen, moved)
          if verdict:
            job.put('verdict/0', verdict)
        else:
          verdict = dict(
            job.client.key_value_dir_get(f'{_PREFIX}/verdict')
          ).get(f'{_PREFIX}/verdict/0')
        self._answered = time.monotonic()
      except jax.errors.JaxRuntimeError:
        continue
      if verdict:
        self._end(verdict)

  def _judge(self, seen, moved):
    """Process 0: (verdict or '', moved)."""
    job, now = self._job, time.monotonic()
    read = lambda folder: {
      int(k.rsplit('/', 1)[1]): v
      for k, v in job.client.key_value_dir_get(f'{_PREFIX}/{folder}')
    }
    failed = read('failed')
    if failed:
      return '; '.join(
        f'{job.name(i)} failed: {failed[i]}' for i in sorted(failed)
      ), moved
    alive = read('alive')
    for i in range(len(job.hosts)):
      if i not in seen or seen[i][0] != alive.get(i):
        seen[i] = (alive.get(i), now)
    gone = [i for i in seen if now - seen[i][1] > job.lost_after]
    if gone:
      return (
        f'{job.names(gone)} is gone: no sign of life for {job.lost_after:g} s'
      ), moved
    steps = [int(alive.get(i, '0 -1').split()[1]) for i in seen]
    if steps != moved[0]:
      moved = (steps, now)
    if max(steps) >= 0 and now - moved[1] > job.stuck_after:
      behind = [i for i, s in enumerate(steps) if s == min(steps)]
      return (
        f'no progress for {job.stuck_after:g} s: {job.names(behind)} '
        f'stands at step {min(steps)}, the first at step {max(steps)}'
      ), moved
    return '', moved

  def _coordinator(self):
    """Ends the process if process 0 no longer answers."""
    while not self._stop.wait(self._period):
      if time.monotonic() - self._answered > self._job.lost_after:
        self._end(
          f'{self._job.name(0)}, the coordinator, is gone: no answer '
          f'for {self._job.lost_after:g} s'
        )
