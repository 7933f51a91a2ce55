"""Work that a run does at some of its steps: log, evaluate, save, profile.

Each object is called after every step and decides whether its work is due.
`clu.periodic_actions` has the same design, but importing it imports TensorFlow.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import os
import shutil
import tempfile
import time
from typing import Any

from absl import logging
import jax

from vit_jax.data.batches import TooManyBadImages
from vit_jax.files import is_remote, upload
from vit_jax.parallel.processes import broadcast_from_first
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.goodput import Goodput
from vit_jax.training.progress import Progress
from vit_jax.training.state import TrainState, to_tree, variables
from vit_jax.training.whole_params import whole_arrays
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
  step = int(jax.device_get(state.bad_step))
  if step >= 0:
    raise NonFinite(
      f'loss or gradient is not finite at step {step}. No checkpoint of that '
      'state was written. Lower the learning rate (optim.lr). A recipe can '
      'also raise schedule.warmup_steps, set optim.clip=1.0, or set '
      "run.nan='skip' to leave such steps out"
    )


def skipped_steps(state: TrainState, step: int) -> dict[str, int]:
  """What a summary says of skipped steps; a warning if they are the most.

  Args:
    state: at the end of the run.
    step: number of finished steps.
  """
  skipped = int(jax.device_get(state.skipped))
  if 2 * skipped > step:
    logging.warning(
      "run.nan='skip': %d of %d steps were skipped because their loss or "
      'gradient was not finite, so the model has hardly learned. Lower '
      'optim.lr, raise schedule.warmup_steps or set optim.clip=1.0',
      skipped,
      step,
    )
  return {'skipped_steps': skipped} if skipped else {}


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
    self._directory = directory
    # The profiler writes local files only.
    self._local = tempfile.mkdtemp() if is_remote(directory) else str(directory)
    self._first, self._last = steps or (0, 0)
    self._running = False

  def before(self, step: int) -> None:
    """Begins the trace if it is due after `step` finished steps."""
    if not self._running and self._first <= step < self._last:
      jax.profiler.start_trace(self._local)
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
      if is_remote(self._directory):
        upload(self._local, self._directory)
        shutil.rmtree(self._local)


class Log:
  """Writes the metrics of every n-th step, of the first and of the last.

  Args:
    writer: writes metrics.jsonl and TensorBoard events.
    progress: measures the speed and makes the live line.
    goodput: adds up what the time is spent on.
    say: prints a line.
    every_steps: n.
    first_step: number of finished steps when the run was started or resumed.
    total_steps: length of the run in steps.
    steps_per_epoch: optimizer steps of an epoch.
    extra_steps: what is added to a step before it is divided by these, for a
      run whose batch size changed.
    check: raises an exception if the run must stop.

  Attributes:
    line: the newest live line; '' before the first.
  """

  def __init__(
    self,
    writer: Writer,
    progress: Progress,
    goodput: Goodput,
    say: Say,
    *,
    every_steps: int,
    first_step: int,
    total_steps: int,
    steps_per_epoch: float,
    extra_steps: int = 0,
    check: Callable[[TrainState], None] = check_finite,
  ):
    self._writer, self._progress, self._say = writer, progress, say
    self._goodput = goodput
    self._every, self._check = every_steps, check
    self._always = (first_step + 1, total_steps)
    self._steps_per_epoch, self._extra = steps_per_epoch, extra_steps
    self.line = ''
    self._logged = first_step, None  # step and skipped steps of the last call

  def __call__(
    self, step: int, state: TrainState, values: Mapping[str, jax.Array]
  ) -> None:
    """Logs the `values` that the step returned, if it is due."""
    if step % self._every and step not in self._always:
      return
    self._check(state)
    numbers, skipped = jax.device_get((dict(values), state.skipped))
    if skipped:
      numbers['skipped_steps'] = skipped
    self._warn_of_skipped(step, int(skipped))
    totals = self._goodput.totals()
    speed = self._progress.update(step, totals['time_input'])
    epoch = (step + self._extra) / self._steps_per_epoch
    self._writer.write(step, {**numbers, **speed, **totals}, epoch=epoch)
    self.line = self._progress.line(step, epoch, numbers, speed)
    self._say(self.line)

  def _warn_of_skipped(self, step: int, skipped: int) -> None:
    last_step, before = self._logged
    self._logged = step, skipped
    # Before the first call of a resumed run, only the total is known.
    new = skipped - (before or 0)
    if new and step > last_step:
      logging.warning(
        "run.nan='skip': %d steps up to step %d were skipped because their "
        'loss or gradient was not finite, %d of %d in all. Lower optim.lr or '
        'set optim.clip=1.0 if this goes on',
        new,
        step,
        skipped,
        step,
      )


class Evaluation:
  """Evaluates every n-th step and the last one.

  Args:
    evaluator: variables -> results of every eval set.
    writer: writes metrics.jsonl and TensorBoard events.
    goodput: adds up what the time is spent on.
    say: prints a line.
    every_steps: n; None evaluates the last step only.
    total_steps: length of the run in steps.
    steps_per_epoch: optimizer steps of an epoch.
    extra_steps: what is added to a step before it is divided by these, for a
      run whose batch size changed.
    average: evaluate the moving average of the parameters.
    whole: put parameters that are split along `fsdp` together once, and not
      anew for every batch.
    check: raises an exception if the run must stop.
    score: takes a step and its scores by name.
    probe: variables -> accuracies of few-shot probes by name; None for none.
  """

  def __init__(
    self,
    evaluator: Callable[[Any], Results],
    writer: Writer,
    goodput: Goodput,
    say: Say,
    *,
    every_steps: int | None,
    total_steps: int,
    steps_per_epoch: float,
    extra_steps: int = 0,
    average: bool = False,
    whole: bool = False,
    check: Callable[[TrainState], None] = check_finite,
    score: Callable[[int, dict[str, float]], None] | None = None,
    probe: Callable[[Any], dict[str, float]] | None = None,
  ):
    self._score, self._probe, self._goodput = score, probe, goodput
    self._evaluator, self._writer, self._say = evaluator, writer, say
    self._every, self._total = every_steps, total_steps
    self._steps_per_epoch, self._extra = steps_per_epoch, extra_steps
    self._average, self._whole, self._check = average, whole, check
    self._step, self._results = -1, {}

  def __call__(self, step: int, state: TrainState) -> None:
    """Evaluates the state, if it is due.

    An evaluation that fails before the end is reported, and training goes on.
    At the end it raises, when the state has been saved.
    """
    if not self.is_due(step):
      return
    self._check(state)
    try:
      self.evaluate(step, state)
    except NonFinite:
      raise
    except Exception as e:
      # Of several processes, all find the same number of bad images. What else
      # fails in one of them leaves the others waiting for it.
      alike = isinstance(e, TooManyBadImages) or jax.process_count() == 1
      if step == self._total or not alike:
        raise
      logging.error(
        'the evaluation at step %d failed, and training goes on: %s: %s',
        step,
        type(e).__name__,
        e,
      )

  def make_up(self, step: int, state: TrainState) -> None:
    """Evaluates a restored state, if the stopped run did not come to it."""
    missing = not self._writer.has_results(step)
    if self.is_due(step) and broadcast_from_first(missing):
      self(step, state)

  def is_due(self, step: int) -> bool:
    """Whether a step is evaluated."""
    return step == self._total or bool(self._every and step % self._every == 0)

  def at(self, step: int) -> Results:
    """The results of a step; empty unless it was the last one evaluated."""
    return self._results if step == self._step else {}

  def evaluate(self, step: int, state: TrainState) -> Results:
    """Evaluates a state, and writes and prints the results."""
    probed = {}
    with self._goodput.spent_on('time_evaluation'):
      weights = variables(state, average=self._average)
      if self._whole:
        weights = whole_arrays(weights)
      self._results = self._evaluator(weights)
      if self._probe:
        probed = self._probe(weights)
    self._step = step
    epoch = (step + self._extra) / self._steps_per_epoch
    if self._score:
      scores = {
        f'{name}_{key}': float(value)
        for name, values in self._results.items()
        for key, value in values.items()
      }
      self._score(step, scores)
    if probed and not self._writer.has_results(step):
      self._writer.write(step, probed, epoch=epoch, prefix='fewshot_')
    for name, values in self._results.items():
      if not self._writer.has_results(step, name):
        self._writer.write(step, values, epoch=epoch, prefix=f'{name}_')
      self._say(
        f'eval {name} at step {step}: top-1 {values["top1"]:.2%}  '
        f'top-5 {values["top5"]:.2%}  loss {values["loss"]:.4f}  '
        f'({values["examples"]} examples)'
      )
    if probed:
      shown = (f'{name} {value:.2%}' for name, value in probed.items())
      self._say(f'few-shot at step {step}: {"  ".join(shown)}')
    return self._results


class Saving:
  """Saves every n-th step, or every so many minutes, and the last one.

  Args:
    checkpoints: the saved steps of the run.
    metadata: stored with every step.
    goodput: adds up what the time is spent on.
    every_steps: n; None does not save by steps.
    every_minutes: minutes from one save to the next; None does not save by
      time.
    ask_every_steps: how often several processes get the decision of process 0
      whether the minutes have passed. A single process looks at its clock after
      every step.
    total_steps: length of the run in steps.
    check: raises an exception if the run must stop.
    guard: raises if this run may not write into its workdir any more.
    clock: seconds that only increase.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    metadata: WeightsMetadata,
    goodput: Goodput,
    *,
    every_steps: int | None,
    every_minutes: float | None,
    ask_every_steps: int,
    total_steps: int,
    check: Callable[[TrainState], None] = check_finite,
    guard: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._checkpoints, self._metadata = checkpoints, metadata
    self._every, self._minutes = every_steps, every_minutes
    self._ask_every = 1 if jax.process_count() == 1 else ask_every_steps
    self._total, self._check, self._clock = total_steps, check, clock
    self._guard, self._goodput = guard, goodput
    self._last_time = clock()

  def __call__(
    self, step: int, state: TrainState, *, now: bool = False
  ) -> None:
    """Starts saving the state, if it is due or if `now` is set.

    Args:
      step: number of finished steps.
      state: the state after this step.
      now: save even if it is not due, and wait until it is saved.
    """
    if not (now or self._is_due(step)):
      return
    self._check(state)
    if self._guard:
      self._guard()
    with self._goodput.spent_on('time_checkpoints'):
      self._checkpoints.save(step, to_tree(state), self._metadata)
    if now:
      self.wait()
    self._last_time = self._clock()

  def wait(self) -> None:
    """Waits for the save in progress; CheckpointError if it failed."""
    with self._goodput.spent_on('time_checkpoints'):
      self._checkpoints.wait()

  def _is_due(self, step: int) -> bool:
    if step == self._total or (self._every and step % self._every == 0):
      return True
    if self._minutes is None or step % self._ask_every:
      return False
    passed = self._clock() - self._last_time > 60 * self._minutes
    # The clocks of the processes differ, but all must save the same step.
    return broadcast_from_first(passed)
