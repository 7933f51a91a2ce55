"""Saves and restores the state of a run, with Orbax (v1).

`WORKDIR/checkpoints/STEP` holds the state as a plain tree of dicts
(parameters, BatchNorm statistics, optimizer, average, step) and a
`WeightsMetadata` with the recipe and the class names, so that a step alone is
enough to predict with. Saving is asynchronous and atomic: a step appears under
its number only when it is complete.
"""

import contextlib
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.steps import (
  FOLDER,
  CheckpointError,
  absolute,
  describe_mismatch,
  read_metadata,
)


class Checkpoints:
  """The saved steps of one workdir.

  Steps that none of the `keep_` arguments keeps are deleted.

  Args:
    workdir: local or remote directory.
    keep_latest: number of newest steps that are kept, at least 1.
    keep_best: number of best steps that are kept.
    keep_every: steps that are multiples of this number are kept.
    metric: name in the `metrics` of `save` that says which steps are best;
      larger is better.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    keep_latest: int = 1,
    keep_best: int = 0,
    keep_every: int | None = None,
    metric: str = '',
  ):
    self.directory = absolute(workdir) / FOLDER
    policies = ocp.training.preservation_policies
    keep: list[Any] = [policies.LatestN(max(1, keep_latest))]
    if keep_best:
      keep.append(
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[metric],
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    # The loop decides when to save, so every step may be saved.
    every_step: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    preserve: Any = policies.AnyPreservationPolicy(keep)
    self._orbax = ocp.training.Checkpointer(
      self.directory,
      save_decision_policy=every_step,
      preservation_policy=preserve,
      cleanup_tmp_directories=True,  # removes what a killed save left behind
    )
    self._saved = None  # the step that was last saved or is being saved
    self._failed = False  # whether `save` or `wait` has raised an error

  def steps(self) -> list[int]:
    """The saved steps, oldest first."""
    return [c.step for c in self._orbax.checkpoints]

  def save(
    self,
    step: int,
    tree: Any,
    metadata: WeightsMetadata,
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts saving, and returns when the device arrays have been copied.

    A step that is already saved stays as it is.

    Args:
      step: number of finished steps.
      tree: the state as nested dicts of arrays.
      metadata: stored beside the state.
      metrics: scores of the step, for `keep_best`.

    Raises:
      CheckpointError: this save or the one before it failed.
    """
    self.wait()
    if step in self.steps():
      return
    self._saved = step
    with self._explained():
      self._orbax.save_async(
        step,
        tree,
        force=True,
        metrics=metrics,  # pyright: ignore
        custom_metadata=metadata.to_json(),
      )

  def wait(self) -> None:
    """Waits for the save in progress; CheckpointError if it failed."""
    with self._explained():
      self._orbax.wait()

  @contextlib.contextmanager
  def _explained(self):
    """Turns any error of saving into a CheckpointError that says what to do."""
    try:
      yield
    except Exception as e:
      self._failed = True
      raise CheckpointError(
        f'saving step {self._saved} to {self.directory} failed: {e}\n'
        'The steps saved before it are intact. Free space or fix the '
        'permissions, then start the same command again.'
      ) from e

  def restore(self, abstract: Any) -> tuple[Any, WeightsMetadata, int] | None:
    """Loads the newest step that can be read.

    A step that cannot be read is named in the log and renamed to
    `STEP.unreadable`, and the step before it is loaded instead.

    Args:
      abstract: tree of shapes, dtypes and shardings to load into.

    Returns:
      The tree, its metadata and the step; None if there is no step that can be
      read.

    Raises:
      CheckpointError: a step can be read, but its tree differs from `abstract`.
    """
    for step in reversed(self.steps()):
      path = self.directory / str(step)
      try:
        return self._orbax.load(step, abstract), read_metadata(path), step
      except Exception as e:  # Orbax raises many kinds for damaged files
        if _is_sound(path):
          mismatch = describe_mismatch(path, abstract) or e
          raise CheckpointError(
            f'{path} does not fit this recipe: {mismatch}\nUse another '
            'workdir, or the recipe that made it.'
          ) from e
        logging.error(
          'checkpoint %s is unreadable (%s: %s); '
          'falling back to the step before it',
          path,
          type(e).__name__,
          str(e).split('\n')[0][:120],
        )
        self._set_aside(step)
    return None

  def _set_aside(self, step: int) -> None:
    """Renames a damaged step, so that it no longer counts as a step."""
    if jax.process_index() == 0:
      path = self.directory / str(step)
      path.rename(path.with_name(f'{step}.unreadable'))
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f'unreadable {step}')
    self._orbax.reload()

  def close(self) -> None:
    """Waits for the save in progress and closes.

    Raises:
      CheckpointError: that save failed, and no error was raised before.
    """
    failed = self._failed
    try:
      self.wait()
      with self._explained():
        self._orbax.close()
    except CheckpointError:
      if not failed:
        raise


def _is_sound(path: epath.Path) -> bool:
  """Whether a step can be read with the shapes that it was saved with."""
  try:
    stored = ocp.metadata(path).metadata
    leaves = jax.tree.leaves(stored)
    ocp.load(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored))
    return bool(leaves)
  except Exception:
    return False
