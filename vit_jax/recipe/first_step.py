"""The first step of a run, whose compilation begins as early as it can."""

from collections.abc import Iterator
import itertools
import time
from typing import Any

from vit_jax.allocation import collect_as_usual
from vit_jax.parallel import processes
from vit_jax.parallel.compilation import compile_ahead, compile_together
from vit_jax.recipe.build import Run
from vit_jax.recipe.inputs import TrainInput
from vit_jax.recipe.kept_step import KeptStep
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.step import TrainStep


class FirstStep:
  """Reads the first batch of a run, and compiles the training step for it.

  A run without a saved step begins at step 0. So its first batch is read and
  its step is compiled, in a thread, while its state is still being made. A
  resumed run, a job of several processes, and a run on a GPU do both
  afterwards. A step that an earlier run of the recipe has kept is not compiled.

  Args:
    run: what `build` returned.
    inputs: the training input.
    train_step: what `compile_step` returned.
  """

  def __init__(self, run: Run, inputs: TrainInput, train_step: Any):
    self._run, self._inputs, self._train_step = run, inputs, train_step
    self._batches: Any = None
    self._ahead: Any = None
    self._kept: Any = None
    self._compiled: Any = None
    self._begin = time.monotonic()

  def begin(self, checkpoints: Checkpoints) -> None:
    """Begins a run without a saved step; call it in the run's mesh.

    Args:
      checkpoints: the saved steps in the run's workdir.

    Raises:
      TooManyBadImages: the first batch cannot be read.
    """
    config = self._run.config
    is_fresh = not (checkpoints.steps() or config.run.resume)
    makes_steps = self._run.total_steps and not config.run.eval_only
    # On a GPU, the compiler measures kernels, for which it must be idle.
    is_gpu = self._run.mesh.devices.flat[0].platform == 'gpu'
    is_alone = processes.current_job() is None and not is_gpu
    if is_fresh and makes_steps and is_alone:
      self._begin = time.monotonic()
      self._batches = self._inputs.batches(0)
      batch = next(self._batches)
      self._kept = KeptStep(self._run, self._inputs, batch)
      wait = None
      if not self._kept.fits:
        wait = compile_ahead(
          self._train_step, self._run.abstract_state, batch, self._inputs.extras
        )
      self._ahead = batch, wait

  def batches(self, first_step: int) -> Iterator[Any]:
    """The batches of the steps after so many finished ones."""
    if self._ahead is not None and first_step == 0:
      return itertools.chain([self._ahead[0]], self._batches)
    self.close()
    self._ahead, self._begin = None, time.monotonic()
    self._batches = self._inputs.batches(first_step)
    return self._batches

  def compile(self, state: Any, batch: Any) -> TrainStep:
    """Waits for the training step, in all processes of a job; returns it."""
    wait = None
    if self._ahead is None:
      self._kept = KeptStep(self._run, self._inputs, batch)
      compile_together(self._train_step, state, batch, self._inputs.extras)
    else:
      _, wait = self._ahead
    if wait is not None:
      self._compiled = wait()
    elif self._kept.fits:
      return self._kept.load() or self._train_step
    return self._train_step

  def done(self) -> float:
    """Keeps the step if it was compiled in this run, after it has run once.

    Returns:
      Seconds since the compilation began.
    """
    seconds = time.monotonic() - self._begin
    if self._compiled is not None and self._compiled.is_new:
      self._kept.keep(self._compiled.compiled)
    self._compiled = None
    collect_as_usual()
    return seconds

  def close(self) -> None:
    """Stops the reading of batches."""
    if self._batches is not None:
      self._batches.close()
