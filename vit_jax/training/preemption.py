"""Stops a run in order when its machine is taken away."""

import signal
import threading

import jax


class Preempted(Exception):
  """The run was told to stop, and has saved its state."""


class StopSignal:
  """Turns SIGTERM into a flag that all processes see at the same step.

  A context manager: the signal means what it meant before once it is left.
  """

  def __init__(self):
    self._received = threading.Event()
    self._previous = None

  def __enter__(self) -> 'StopSignal':
    # Several processes leave the signal to JAX's own service. Python sets
    # handlers in the main thread only.
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
