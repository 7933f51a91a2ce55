"""A run of several processes from its beginning to its common end."""

from collections.abc import Iterator
import contextlib
import os

from vit_jax.parallel.logs import log_to
from vit_jax.parallel.processes import (
  barrier,
  check_shared_workdir,
  current_job,
)

# Seconds to wait for the other processes at the end. The watchdog ends the job
# if one of them is lost in the meantime.
_DAY = 24 * 3600


@contextlib.contextmanager
def session(
  workdir: str | os.PathLike | None,
  orderly: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
  """Context manager for a run: logs its output, and ends the job as a whole.

  Process 0 writes to the console and to WORKDIR/log.txt, process I to
  WORKDIR/logs/process_I.txt. If WORKDIR is in a bucket, all write to their
  console only. If a process raises an exception or dies, all end with exit code
  1, and the message names that process: within seconds, or after `lost_after`
  (60) seconds if its machine is lost or the process is halted. The same happens
  if no process makes progress for `stuck_after` seconds.

  Args:
    workdir: the run's directory; None for a dry run, which writes nothing: all
      processes write to their console.
    orderly: exceptions that all processes raise together, such as that of a
      preemption.

  Raises:
    ValueError: the processes do not share the workdir.
  """
  job = current_job()
  log = contextlib.nullcontext() if workdir is None else log_to(workdir)
  if job is None:
    with log:
      yield
    return
  job.watch.begin_session()
  try:
    if workdir is not None:
      check_shared_workdir(workdir)
    with log:
      try:
        yield
      except orderly:
        barrier('the end', timeout=_DAY)
        job.watch.end_session()
        raise
      except BaseException as e:
        job.watch.fail(e)
        raise
      barrier('the end', timeout=_DAY)
      job.watch.end_session()
  except BaseException as e:
    if not isinstance(e, orderly):
      job.watch.fail(e)
    raise
