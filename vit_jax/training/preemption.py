"""Stops a run in order when its machine is taken away, or by Ctrl-C."""

import os
import signal
import threading

from vit_jax.parallel import processes


class Preempted(Exception):
  """The run was told to stop, and has saved its state."""


class StopSignal:
  """Turns SIGTERM and a first SIGINT into a flag that all processes see.

  They see it at the same step. A second SIGINT, such as from Ctrl-C, raises
  KeyboardInterrupt at once.

  A context manager: the signals mean what they meant before once it is left.
  """

  def __init__(self):
    self._received = False
    self._interrupted = False
    self._previous = {}

  def __enter__(self) -> 'StopSignal':
    # Python sets handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
      return self
    if processes.current_job() is None:  # `processes.initialize` sets its own
      self._set(signal.SIGTERM, self._stop)
    self._set(signal.SIGINT, self._interrupt)
    return self

  def _set(self, number: int, handler) -> None:
    self._previous[number] = signal.signal(number, handler)

  def _stop(self, *_) -> None:
    job = processes.current_job()
    if job is None:
      self._received = True
    else:
      job.watch.stop.tell()

  def _interrupt(self, *_) -> None:
    if self._interrupted:
      raise KeyboardInterrupt
    self._interrupted = True
    # A handler must not use Python's buffered streams, which it may have
    # interrupted.
    os.write(
      2,
      b'\ninterrupted: this step is finished and the state saved;\n'
      b'press Ctrl-C again to stop at once, without saving\n',
    )
    self._stop()

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      # None stands for a handler that was not set from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def reached(self, step: int) -> bool:
    """Whether the run must stop after `step`; the same in all processes."""
    job = processes.current_job()
    return self._received if job is None else job.watch.stop.reached(step)
