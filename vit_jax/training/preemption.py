"""Stops a run after saving it, when its machine is preempted."""

import signal
import threading

import jax


class Preempted(Exception):
  """The run was told to stop, and has saved its state."""


class StopSignal:
  """Turns SIGTERM into a flag that all processes see at the same step.

  A context manager; at its end the earlier signal handler is set again.
  """

  def __init__(self):
    self._received = threading.Event()
    self._previous = None

  def __enter__(self) -> 'StopSignal':
    # With several processes, JAX's coordination service handles the signal.
    # Python can set a handler in the main thread only.
    if jax.process_count() == 1 and (
      threading.current_thread() is threading.main_thread()
    ):
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._received.set()
      )
    return self

  def __exit__(self, *_) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def reached(self, step: int) -> bool:
    """Whether the run must stop after `step`; the same in all processes."""
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self._received.is_set()
