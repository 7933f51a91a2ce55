"""What a run does at some of its steps: log, evaluate, save, profile.

Each object is called after every step and decides by itself whether its work is
due. `clu.periodic_actions` has the same form, but importing it imports
TensorFlow.
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
  """Loss or gradient became NaN or infinite; the message names the step."""


def check_finite(state: TrainState) -> None:
  """Raises NonFinite if a step had a loss or gradient that is not finite.

  Such a step and all later ones leave the parameters unchanged, so it is enough
  to look when something is logged, evaluated or saved.
  """
  step = int(state.bad_step)
  if step >= 0:
    raise NonFinite(
      f'loss or gradient is not finite at step {step}. No checkpoint of that '
      'state was written. Lower optim.lr, raise schedule.warmup_steps, set '
      "optim.clip=1.0, or set run.nan='skip' to leave such steps out"
    )


class Throttle:
  """Lets the host run at most `limit` steps ahead of the devices."""

  def __init__(self, limit: int = 2):
    self._limit = limit
    self._in_flight = collections.deque()

  def __call__(self, values: Any) -> None:
    """Takes a step's results; waits for those of the step `limit` before."""
    self._in_flight.append(values)
    if len(self._in_flight) > self._limit:
      jax.block_until_ready(self._in_flight.popleft())


class Profile:
  """Records a profiler trace of some steps.

  Args:
    directory: where the trace goes, for TensorBoard or Perfetto.
    steps: (first, last) finished steps between which the trace is taken; empty
      for no trace. A run that goes on from a step between them traces the
      steps that are left.
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
    """Ends the trace if it is due, when the results of the step are there."""
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
    writer: of the run.
    progress: of the run; gives speed and live line.
    say: prints a line.
    every_steps: n.
    first_step: the step that this process goes on from.
    total_steps, steps_per_epoch: of the run.
    check: raises what must stop the run.
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
    writer: of the run.
    say: prints a line.
    every_steps: n; None evaluates the last step only.
    total_steps, steps_per_epoch: of the run.
    average: evaluate the averaged parameters.
    check: raises what must stop the run.
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
    """The results of a state, also written and printed."""
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
    checkpoints: of the run.
    metadata: the record of every step.
    every_steps: n; None does not count steps.
    every_minutes: None does not look at the clock.
    ask_every_steps: how often several processes ask process 0 whether minutes
      have passed; a process alone looks at its clock after every step.
    total_steps: of the run.
    check: raises what must stop the run.
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
      state: after this step.
      results: of evaluating this step, for the choice of the best steps; may
        be empty.
      now: save in any case.
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
    # The clocks of processes differ, and all must save the same step.
    return broadcast_from_first(passed)
