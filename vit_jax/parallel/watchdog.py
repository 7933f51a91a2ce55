"""Watches the processes of a job and ends all of them when one is lost.

Every process sends a heartbeat to process 0, and process 0 sends one to every
other process. Whichever is silent for too long, closes its connection or
reports an error is named in the log of every process, and all end with exit
code 1. The messages are JSON objects:

  {'step': S}        a heartbeat, with the step of training
  {'failed': TEXT}   this process ends because of an error
  {'verdict': TEXT}  from process 0: the job ends, for this reason
  {'bye': N}         this process ends in order, after N sessions

and those of `joint_stop`.
"""

import contextlib
import os
import sys
import threading
import time
from typing import Any

import jax

from vit_jax.parallel.connections import Connection
from vit_jax.parallel.joint_stop import JointStop

# A process that fails ends at the latest after so many seconds. A normal exit
# would wait minutes for the other processes, in JAX.
_FAREWELL = 5.0


class Watch:
  """Threads that send and receive messages, and end the process.

  Args:
    process_id: number of this process.
    hosts: host name of every process.
    connections: to every other process for process 0, to process 0 for the
      others.
    lost_after: seconds without a heartbeat after which a process is gone.
    stuck_after: seconds without a new step in any process after which the job
      ends.

  Attributes:
    step: number of finished steps of this process; -1 before training.
    stop: stops all processes after the same step.
  """

  def __init__(
    self,
    process_id: int,
    hosts: list[str],
    connections: dict[int, Connection],
    lost_after: float,
    stuck_after: float,
  ):
    self._id, self._hosts = process_id, hosts
    self._connections = connections
    self._lost_after, self._stuck_after = lost_after, stuck_after
    self._period = min(2.0, lost_after / 10)
    self.step = -1
    self.stop = JointStop(process_id, len(hosts), self._tell)
    self._sessions = 0  # that this process has begun
    self._in_session = False
    self._lock = threading.Lock()
    self._ending = False
    now = time.monotonic()
    self._heard = dict.fromkeys(connections, now)  # of the last message
    self._steps = dict.fromkeys(connections, -1)
    self._left: set[int] = set()  # processes that have ended in order
    # The steps of all processes, and when one of them last changed.
    self._progress: tuple[list[int], float] = ([], now)

  def start(self) -> None:
    """Starts the threads."""
    for process, connection in self._connections.items():
      threading.Thread(
        target=self._listen, args=(process, connection), daemon=True
      ).start()
    threading.Thread(target=self._beat, daemon=True).start()

  def begin_session(self) -> None:
    """From now on no process may end before the others."""
    self._sessions += 1
    self._in_session = True

  def end_session(self) -> None:
    """All processes have come to the end of the session."""
    self._in_session = False

  def leave(self) -> None:
    """Tells the other processes that this one ends in order."""
    if not self._ending:
      self._tell({'bye': self._sessions})

  def fail(self, error: BaseException) -> None:
    """Tells the other processes why this one fails, and ends it soon after."""
    if self._ending:
      return
    if _may_come_from_others(error):
      # The wait lets the watchdog name the process that is gone, instead of
      # this one.
      time.sleep(self._lost_after + 2 * self._period)
    if not self._begin_to_end():
      return
    reason = f'{type(error).__name__}: {_first_line(error)}'
    if self._id:
      self._tell({'failed': reason})
    else:
      self._tell({'verdict': f'{self._name(0)} failed: {reason}'})
    timer = threading.Timer(_FAREWELL, os._exit, (1,))
    timer.daemon = True
    timer.start()

  def _begin_to_end(self) -> bool:
    """Whether this call is the first one, so that only one reason is said."""
    with self._lock:
      first, self._ending = not self._ending, True
    return first

  def _end(self, verdict: str) -> None:
    if not self._begin_to_end():
      return
    if not self._id:
      self._tell({'verdict': verdict})
    print(f'error: {verdict}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    if not self._id:
      time.sleep(1.0)  # in which the others read the verdict
    os._exit(1)

  def _name(self, process: int) -> str:
    return f'process {process} ({self._hosts[process]})'

  def _tell(self, message: dict[str, Any]) -> None:
    for connection in self._connections.values():
      # The thread that listens sees that a connection is broken.
      with contextlib.suppress(OSError):
        connection.send(message)

  def _listen(self, process: int, connection: Connection) -> None:
    while True:
      try:
        message = connection.receive()
      except (OSError, ValueError):
        break
      self._heard[process] = time.monotonic()
      if 'step' in message:
        self._steps[process] = int(message['step'])
      elif 'verdict' in message:
        self._end(str(message['verdict']))
      elif 'failed' in message:
        self._end(f'{self._name(process)} failed: {message["failed"]}')
      elif 'bye' in message:
        self._left.add(process)
        if self._in_session and int(message['bye']) < self._sessions:
          self._end(f'{self._name(process)} ended before the others')
      else:
        self.stop.receive(process, message)
    if process not in self._left:
      self._end(f'{self._name(process)} is gone: its connection closed')

  def _beat(self) -> None:
    """Sends heartbeats, and looks for processes that send none."""
    last = time.monotonic()
    while True:
      time.sleep(self._period)
      now = time.monotonic()
      halted = now - last - self._period
      last = now
      if halted > self._period:
        # This process was halted itself, so it has heard nobody.
        for process in self._heard:
          self._heard[process] += halted
        self._progress = self._progress[0], self._progress[1] + halted
      self._tell({'step': self.step})
      verdict = self._judge(now)
      if verdict:
        self._end(verdict)

  def _judge(self, now: float) -> str:
    """The reason why the job must end, or ''."""
    gone = [
      process
      for process, heard in self._heard.items()
      if now - heard > self._lost_after and process not in self._left
    ]
    if gone:
      return (
        f'{", ".join(map(self._name, gone))} is gone: no heartbeat for '
        f'{self._lost_after:g} s'
      )
    if self._id:  # process 0 alone knows the steps of all
      return ''
    steps = [self.step, *(self._steps[i] for i in sorted(self._steps))]
    if steps != self._progress[0]:
      self._progress = (steps, now)
    if max(steps) >= 0 and now - self._progress[1] > self._stuck_after:
      behind = [i for i, step in enumerate(steps) if step == min(steps)]
      return (
        f'no progress for {self._stuck_after:g} s: '
        f'{", ".join(map(self._name, behind))} stands at step {min(steps)}, '
        f'the first at step {max(steps)}'
      )
    return ''


def _first_line(error: BaseException) -> str:
  # A message has a length limit, see `Connection.receive`.
  return (str(error).strip().splitlines() or [''])[0][:1000]


def _may_come_from_others(error: BaseException | None) -> bool:
  """Whether an error can be the consequence of another process's death.

  JAX raises JaxRuntimeError for it, which other errors can have as their cause.
  """
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      return 'RESOURCE_EXHAUSTED' not in str(error)
    error = error.__cause__ or error.__context__
  return False
