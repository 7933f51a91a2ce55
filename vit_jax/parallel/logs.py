"""Sends the output of each process of a job to its log file."""

from collections.abc import Iterator
import contextlib
import os
import sys

from absl import logging

from vit_jax.files import as_path, is_remote
from vit_jax.parallel import processes
from vit_jax.text import for_terminal


class _Tee:
  """A stream that also writes to a file.

  On a terminal, lines that are longer than it are continued on indented lines.
  The file has each line as it is.
  """

  def __init__(self, stream, file):
    self._stream, self._file = stream, file

  def write(self, text):
    self._file.write(text)
    return self._stream.write(for_terminal(text, self._stream))

  def flush(self):
    self._file.flush()
    self._stream.flush()

  def __getattr__(self, name):
    return getattr(self._stream, name)


@contextlib.contextmanager
def log_to(workdir: str | os.PathLike) -> Iterator[None]:
  """Sends the output of this process to its log; see `session.session`.

  Args:
    workdir: the run's directory. If it is in a bucket, nothing is logged to a
      file, because files in a bucket cannot be appended to.
  """
  if is_remote(workdir):
    yield
    return
  folder = as_path(workdir)
  handler = logging.get_absl_handler().python_handler
  process = processes.job_process()
  if process:
    folder = folder / 'logs'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'process_{process}.txt', 'a') as file:
      # The file descriptors are replaced, not only sys.stdout, because C++
      # libraries write to the descriptors, up to the end of the process.
      sys.stdout.flush()
      sys.stderr.flush()
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'log.txt', 'a', buffering=1) as file:
    old = sys.stdout, sys.stderr, handler.stream
    sys.stdout, sys.stderr = _Tee(old[0], file), _Tee(old[1], file)
    if handler.stream is old[1]:
      handler.stream = sys.stderr
    try:
      yield
    finally:
      sys.stdout, sys.stderr, handler.stream = old
