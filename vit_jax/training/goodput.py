"""Goodput: what the time of a run goes into, over all its restarts.

Goodput is the share of the time in which a run made steps that were kept. The
totals are written with the metrics of every logged step, and a run that goes on
continues from the totals that the stopped run logged last. What is not in them:
the time from that line to the stop, and the time in which no process ran.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import time
from typing import Any, TypeVar

from vit_jax.text import duration

Batch = TypeVar('Batch')

# Name of a total in the metrics: what the seconds were spent on.
KINDS = {
  'time_steps': 'steps',
  'time_input': 'input wait',
  'time_checkpoints': 'checkpoints',
  'time_evaluation': 'evaluation',
  'time_compilation': 'compilation',
  'time_start': 'start',
  'time_repeated': 'repeated steps',
}
REPEATED = 'steps_repeated'


class Goodput:
  """Adds up the seconds that a run spends, by what they are spent on.

  Time counts for the steps unless it is given to something else.

  Args:
    clock: seconds that only increase. The time counts from now on.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._begin = clock()
    self._seconds = dict.fromkeys(KINDS, 0.0)
    self._repeated = 0

  def resume(
    self, kept: Mapping[str, Any], last: Mapping[str, Any], resumed_step: int
  ) -> None:
    """Continues the totals of a run that was stopped.

    Args:
      kept: the newest metrics up to the step that is resumed, by name.
      last: the newest metrics of the stopped run, maybe of a later step.
      resumed_step: number of finished steps of the state that is resumed.
    """
    for kind in KINDS:
      self._seconds[kind] += _number(last, kind)
    self._repeated += int(_number(last, REPEATED))
    lost = int(_number(last, 'step')) - resumed_step
    if lost > 0:
      # The seconds of these steps count as steps once they are made again.
      seconds = _number(last, 'time_steps') - _number(kept, 'time_steps')
      self._seconds['time_steps'] -= seconds
      self._seconds['time_repeated'] += seconds
      self._repeated += lost

  @contextlib.contextmanager
  def spent_on(self, kind: str) -> Iterator[None]:
    """Context manager: the time inside counts for `kind`, one of KINDS."""
    begin = self._clock()
    try:
      yield
    finally:
      seconds = self._clock() - begin
      self._seconds[kind] += seconds
      self._begin += seconds

  def wait_for(self, batches: Iterator[Batch]) -> Batch:
    """The next batch; the wait for it counts for the input."""
    with self.spent_on('time_input'):
      return next(batches)

  def was(self, kind: str) -> None:
    """All time so far that is not given to another kind counts for `kind`."""
    now = self._clock()
    self._seconds[kind] += now - self._begin
    self._begin = now

  def totals(self) -> dict[str, float]:
    """Seconds of each kind, steps that were repeated, and the goodput."""
    self.was('time_steps')
    total = sum(self._seconds.values())
    return {
      **{kind: round(x, 3) for kind, x in self._seconds.items()},
      REPEATED: self._repeated,
      'goodput': round(self._seconds['time_steps'] / max(1e-9, total), 4),
    }

  def line(self) -> str:
    """The line at the end of a run."""
    totals = self.totals()
    seconds = [
      f'{label} {duration(totals[kind])}'
      + (f' ({self._repeated})' if kind == 'time_repeated' else '')
      for kind, label in KINDS.items()
    ]
    total = sum(totals[kind] for kind in KINDS)
    return (
      f'goodput {totals["goodput"]:.1%} of {duration(total)}: '
      + ', '.join(seconds)
    )


def _number(values: Mapping[str, Any], name: str) -> float:
  """A value of the metrics; 0 if there is none, as of an earlier version."""
  value = values.get(name, 0)
  return value if isinstance(value, (int, float)) else 0
