"""Lets all processes of a job stop after the same step.

A process that is told to stop asks process 0. Process 0 lets every process wait
at its next step and tell the step that it has passed, and the one after the
largest of them is the step at which all stop:

  {'stop': 'wanted'}    to process 0: this process was told to stop
  {'stop': 'wait'}      from process 0: wait at the next step
  {'passed': S}         to process 0: this process has passed step S and waits
  {'stop_at': S}        from process 0: go on, and stop at step S

JAX's preemption service does the same. It is not used, because a process waits
in it while it holds Python's global lock, and the connection to process 0 on
which it waits is carried by a thread of Python, see `connections.Tunnel`: such
a process could hang for ever.
"""

from collections.abc import Callable
import threading
from typing import Any

_Message = dict[str, Any]


class JointStop:
  """The part of one process in stopping all of them.

  Args:
    process_id: number of this process.
    count: number of processes.
    send: sends a message from process 0 to all others, or from another process
      to process 0.
  """

  def __init__(
    self, process_id: int, count: int, send: Callable[[_Message], None]
  ):
    self._id, self._count, self._send = process_id, count, send
    self._wanted = False
    self._changed = threading.Condition()
    self._step = -1  # the last one that was passed
    self._has_asked = False
    self._waits = False
    self._stop_at: int | None = None
    self._passed: dict[int, int] = {}  # of every process; in process 0

  def tell(self) -> None:
    """Tells this process to stop; a signal handler may call it."""
    self._wanted = True

  def reached(self, step: int) -> bool:
    """Whether this process must stop after `step`; the same in all processes.

    It waits for the other processes when one of them was told to stop.

    Args:
      step: number of finished steps. Every process calls it at every step.
    """
    if self._wanted and not self._has_asked:
      self._has_asked = True
      if self._id:
        self._send({'stop': 'wanted'})
      else:
        self._let_wait()
    with self._changed:
      self._changed.wait_for(
        lambda: not self._waits or self._stop_at is not None
      )
      if self._stop_at is not None and step >= self._stop_at:
        return True
      self._step = step
      return False

  def receive(self, process: int, message: _Message) -> None:
    """Takes a message of another process; others than those above do nothing.

    Args:
      process: the process that sent it.
      message: what it sent.
    """
    if message.get('stop') == 'wanted' and not self._id:
      self._let_wait()
    elif message.get('stop') == 'wait' and self._id:
      self._send({'passed': self._wait()})
    elif 'passed' in message and not self._id:
      self._add(process, int(message['passed']))
    elif 'stop_at' in message and self._id:
      self._go_on(int(message['stop_at']))

  def _let_wait(self) -> None:
    """Of process 0: lets all processes wait at their next step."""
    with self._changed:
      if self._waits:
        return
      passed = self._wait()
    self._send({'stop': 'wait'})
    self._add(0, passed)

  def _wait(self) -> int:
    """From now on no step is passed; the last one that was."""
    with self._changed:
      self._waits = True
      return self._step

  def _add(self, process: int, step: int) -> None:
    """Of process 0: decides when all processes have told their step."""
    with self._changed:
      self._passed[process] = step
      if len(self._passed) < self._count:
        return
      stop_at = 1 + max(self._passed.values())
    self._send({'stop_at': stop_at})
    self._go_on(stop_at)

  def _go_on(self, stop_at: int) -> None:
    with self._changed:
      self._stop_at = stop_at
      self._changed.notify_all()
