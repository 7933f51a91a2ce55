"""Checkpoints: the only place that imports Orbax (v1).

`WORKDIR/checkpoints/STEP` holds the state as a plain tree of dicts
(parameters, BatchNorm statistics, optimizer, average, step) and, as metadata,
the recipe that made it and the class names, so that a step alone is enough to
predict with. Saving is asynchronous and atomic: a step appears under its
number only when it is complete.
"""

import contextlib
from typing import Any

from absl import logging
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
  """The steps of one workdir.

  Args:
    workdir: local or remote directory.
    keep_latest, keep_best: how many newest and best steps stay.
    keep_every: steps that are multiples of it stay too.
    metric: name in `metrics` of `save` that ranks steps, larger is better.
  """

  def __init__(
    self,
    workdir,
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
      cleanup_tmp_directories=True,  # what a killed save left behind
    )
    self._saved = None
    self._failed = False  # an error was raised to the caller

  def steps(self) -> list[int]:
    return [c.step for c in self._orbax.checkpoints]

  def save(
    self,
    step: int,
    tree: Any,
    metadata: WeightsMetadata,
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts saving; returns when the device arrays have been copied."""
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
    """Waits for the save in progress; raises what went wrong with it."""
    with self._explained():
      self._orbax.wait()

  @contextlib.contextmanager
  def _explained(self):
    try:
      yield
    except Exception as e:
      self._failed = True
      raise CheckpointError(
        f'saving step {self._saved} to {self.directory} failed: {e}\n'
        'The steps saved before it are intact. Free space or fix the '
        'permissions, then start the same command again.'
      ) from e

  def restore(self, abstract: Any) -> Any:
    """The newest readable step: (tree, metadata, step), None if there is none.

    A step that cannot be read is named in the log, set aside under
    `STEP.unreadable` (never deleted), and the one before it is taken.
    """
    for step in reversed(self.steps()):
      path = self.directory / str(step)
      try:
        tree = self._orbax.load(step, abstract)
        metadata = read_metadata(path)
        return tree, metadata, step
      except Exception as e:  # whatever a torn file makes Orbax raise
        if _is_whole(path):  # then it is of another recipe, not torn
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
        if jax.process_index() == 0:
          path.rename(self.directory / f'{step}.unreadable')
        if jax.process_count() > 1:
          from jax.experimental import multihost_utils

          multihost_utils.sync_global_devices(f'unreadable {step}')
        self._orbax.reload()
    return None

  def close(self) -> None:
    """Waits and closes; an error that was raised before is not repeated."""
    failed = self._failed
    try:
      self.wait()
      with self._explained():
        self._orbax.close()
    except CheckpointError:
      if not failed:
        raise


def _is_whole(path) -> bool:
  """Whether a step can be read in its own shapes."""
  try:
    stored = ocp.metadata(path).metadata
    leaves = jax.tree.leaves(stored)
    ocp.load(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored))
    return bool(leaves)
  except Exception:
    return False
