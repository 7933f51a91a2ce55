"""Work that a run does at some of its steps: log, evaluate, save, profile.

Each object is called after every step and decides whether its work is due.
`clu.periodic_actions` has the same design, but importing it imports TensorFlow.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import os
import time
from typing import Any

import jax
import numpy as np

from vit_jax.parallel.processes import broadcast_from_first
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.progress import Progress
from vit_jax.training.state import TrainState, to_tree, variables
from vit_jax.training.writers import Writer
from vit_jax.weights.metadata import WeightsMetadata

# {eval set: {'top1', 'top5', 'loss', 'examples'}}
Results = dict[str, dict[str, float]]
Say = Callable[[str], None]


class NonFinite(RuntimeError):
  """The loss or a gradient is NaN or infinite; the message names the step."""


def check_finite(state: TrainState) -> None:
  """Raises NonFinite if a step had a loss or gradient that is not finite.

  That step and all later ones leave the parameters unchanged, so it is enough
  to check when something is logged, evaluated or saved.
  """
  step = int(state.bad_step)
  if step >= 0:
    raise NonFinite(
      f'loss or gradient is not finite at step {step}. No checkpoint of that '
      'state was written. Lower the learning rate (optim.lr). A recipe can '
      'also raise schedule.warmup_steps, set optim.clip=1.0, or set '
      "run.nan='skip' to leave such steps out"
    )


class Throttle:
  """Lets the host run at most `limit` steps ahead of the devices."""

  def __init__(self, limit: int = 2):
    self._limit = limit
    self._in_flight = collections.deque()

  def __call__(self, values: Any) -> None:
    """Takes a step's results, and waits for those of `limit` steps before."""
    self._in_flight.append(values)
    if len(self._in_flight) > self._limit:
      jax.block_until_ready(self._in_flight.popleft())


class Profile:
  """Records a profiler trace of some steps.

  Args:
    directory: where the trace goes, for TensorBoard or Perfetto.
    steps: (first, last): the trace begins after `first` finished steps and ends
      after `last`; empty for no trace. A run that resumes in this range traces
      the remaining steps.
  """

  def __init__(self, directory: str | os.PathLike, steps: Sequence[int] = ()):
    self._directory = str(directory)
    self._first, self._last = steps or (0, 0)
    self._running = False

  def before(self, step: int) -> None:
    """Begins the trace if it is due after `step` finished steps."""
    if not self._running and self._first <= step < self._last:
      jax.profiler.start_trace(self._directory)
      self._running = True

  def after(self, step: int, values: Any) -> None:
    """Ends the trace if it is due, once the step's results are computed."""
    if self._running and step >= self._last:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    """Ends a trace whose last step was not reached."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()


class Log:
  """Writes the metrics of every n-th step, of the first and of the last.

  Args:
    writer: writes metrics.jsonl and TensorBoard events.
    progress: measures the speed and makes the live line.
    say: prints a line.
    every_steps: n.
    first_step: number of finished steps when the run was started or resumed.
    total_steps: length of the run in steps.
    steps_per_epoch: optimizer steps of an epoch.
    check: raises an exception if the run must stop.
  """

  def __init__(
    self,
    writer: Writer,
    progress: Progress,
    say: Say,
    *,
    every_steps: int,
    first_step: int,
    total_steps: int,
    steps_per_epoch: int,
    check: Callable[[TrainState], None] = check_finite,
  ):
    self._writer, self._progress, self._say = writer, progress, say
    self._every, self._check = every_steps, check
    self._always = (first_step + 1, total_steps)
    self._steps_per_epoch = steps_per_epoch

  def __call__(
    self, step: int, state: TrainState, values: Mapping[str, jax.Array]
  ) -> None:
    """Logs the `values` that the step returned, if it is due."""
    if step % self._every and step not in self._always:
      return
    self._check(state)
    numbers = {name: np.asarray(value) for name, value in values.items()}
    if int(state.skipped):
      numbers['skipped_steps'] = np.asarray(state.skipped)
    speed = self._progress.update(step)
    epoch = step / self._steps_per_epoch
    self._writer.write(step, {**numbers, **speed}, epoch=epoch)
    self._say(self._progress.line(step, epoch, numbers, speed))


class Evaluation:
  """Evaluates every n-th step and the last one.

  Args:
    evaluator: variables -> results of every eval set.
    writer: writes metrics.jsonl and TensorBoard events.
    say: prints a line.
    every_steps: n; None evaluates the last step only.
    total_steps: length of the run in steps.
    steps_per_epoch: optimizer steps of an epoch.
    average: evaluate the moving average of the parameters.
    check: raises an exception if the run must stop.
  """

  def __init__(
    self,
    evaluator: Callable[[Any], Results],
    writer: Writer,
    say: Say,
    *,
    every_steps: int | None,
    total_steps: int,
    steps_per_epoch: int,
    average: bool = False,
    check: Callable[[TrainState], None] = check_finite,
  ):
    self._evaluator, self._writer, self._say = evaluator, writer, say
    self._every, self._total = every_steps, total_steps
    self._steps_per_epoch = steps_per_epoch
    self._average, self._check = average, check
    self._step, self._results = -1, {}

  def __call__(self, step: int, state: TrainState) -> None:
    """Evaluates the state, if it is due."""
    if step == self._total or (self._every and step % self._every == 0):
      self._check(state)
      self.evaluate(step, state)

  def at(self, step: int) -> Results:
    """The results of a step; empty unless it was the last one evaluated."""
    return self._results if step == self._step else {}

  def evaluate(self, step: int, state: TrainState) -> Results:
    """Evaluates a state, and writes and prints the results."""
    self._results = self._evaluator(variables(state, average=self._average))
    self._step = step
    epoch = step / self._steps_per_epoch
    for name, values in self._results.items():
      self._writer.write(step, values, epoch=epoch, prefix=f'{name}_')
      self._say(
        f'eval {name} at step {step}: top-1 {values["top1"]:.2%}  '
        f'top-5 {values["top5"]:.2%}  loss {values["loss"]:.4f}  '
        f'({values["examples"]} examples)'
      )
    return self._results


class Saving:
  """Saves every n-th step, or every so many minutes, and the last one.

  Args:
    checkpoints: the saved steps of the run.
    metadata: stored with every step.
    every_steps: n; None does not save by steps.
    every_minutes: minutes from one save to the next; None does not save by
      time.
    ask_every_steps: how often several processes get the decision of process 0
      whether the minutes have passed. A single process looks at its clock after
      every step.
    total_steps: length of the run in steps.
    check: raises an exception if the run must stop.
    clock: seconds that only increase.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    metadata: WeightsMetadata,
    *,
    every_steps: int | None,
    every_minutes: float | None,
    ask_every_steps: int,
    total_steps: int,
    check: Callable[[TrainState], None] = check_finite,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._checkpoints, self._metadata = checkpoints, metadata
    self._every, self._minutes = every_steps, every_minutes
    self._ask_every = 1 if jax.process_count() == 1 else ask_every_steps
    self._total, self._check, self._clock = total_steps, check, clock
    self._last_time = clock()

  def __call__(
    self, step: int, state: TrainState, results: Results, *, now: bool = False
  ) -> None:
    """Starts saving the state, if it is due or if `now` is set.

    Args:
      step: number of finished steps.
      state: the state after this step.
      results: results of evaluating this step, by which the best steps are
        chosen; may be empty.
      now: save even if it is not due.
    """
    if not (now or self._is_due(step)):
      return
    self._check(state)
    scores = {
      f'{name}_{key}': value
      for name, values in results.items()
      for key, value in values.items()
    }
    self._checkpoints.save(step, to_tree(state), self._metadata, scores or None)
    self._last_time = self._clock()

  def _is_due(self, step: int) -> bool:
    if step == self._total or (self._every and step % self._every == 0):
      return True
    if self._minutes is None or step % self._ask_every:
      return False
    passed = self._clock() - self._last_time > 60 * self._minutes
    # The clocks of the processes differ, but all must save the same step.
    return broadcast_from_first(passed)
