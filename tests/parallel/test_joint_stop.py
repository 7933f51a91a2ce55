"""All processes stop after the same step, whichever was told to, and when."""

import queue
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from vit_jax.parallel.joint_stop import JointStop


class Job:
  """Processes as threads, whose messages arrive after a while."""

  def __init__(self, count: int, delay: float = 0.0):
    self._delay, self._messages = delay, queue.SimpleQueue()
    self.processes = [
      JointStop(i, count, lambda m, i=i: self._messages.put((i, m)))
      for i in range(count)
    ]
    threading.Thread(target=self._deliver, daemon=True).start()

  def _deliver(self):
    while (item := self._messages.get()) is not None:
      sender, message = item
      time.sleep(self._delay)
      receivers = [0] if sender else range(1, len(self.processes))
      for i in receivers:
        self.processes[i].receive(sender, message)

  def run(self, steps: int, told: dict[int, int], paces: list[float]):
    """The step at which each process stops; None for one that does not."""
    stopped = [None] * len(self.processes)

    def work(i):
      for step in range(1, steps):
        time.sleep(paces[i])
        if told.get(i) == step:
          self.processes[i].tell()
        if self.processes[i].reached(step):
          stopped[i] = step
          return

    threads = [
      threading.Thread(target=work, args=(i,), daemon=True)
      for i in range(len(self.processes))
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(20)
      assert not thread.is_alive(), 'a process waits for ever'
    self._messages.put(None)
    return stopped


@settings(deadline=None, max_examples=25)
@given(
  count=st.integers(2, 4),
  told=st.dictionaries(st.integers(0, 3), st.integers(1, 12), min_size=1),
  paces=st.lists(st.sampled_from([0.0, 0.0002]), min_size=4, max_size=4),
  delay=st.sampled_from([0.0, 0.0003]),
)
def test_all_stop_after_the_same_step(count, told, paces, delay):
  told = {i: step for i, step in told.items() if i < count}
  stopped = Job(count, delay).run(10_000, told, paces)
  assert len(set(stopped)) == 1
  assert (stopped[0] is None) == (not told)
  assert not told or stopped[0] >= min(told.values())


@pytest.mark.parametrize('who', [0, 1])
def test_who_is_told_before_the_first_step_stops_after_it(who):
  job = Job(2)
  job.processes[who].tell()
  stopped = job.run(10_000, {}, [0.0, 0.0])
  assert stopped[0] == stopped[1]


def test_a_signal_at_the_last_step_halts_nobody():
  """Those that have finished answer, and the others are not held up."""
  assert Job(3).run(8, {1: 7}, [0.0, 0.0, 0.001]) in ([None] * 3, [7] * 3)
