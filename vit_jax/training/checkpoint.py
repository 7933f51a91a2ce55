"""Saves and restores the state of a run, with Orbax (v1).

`WORKDIR/checkpoints/STEP` holds the state as a plain tree of dicts
(parameters, BatchNorm statistics, optimizer, average, step) and a record: a
`WeightsMetadata` with the recipe and the class names, so that a step alone is
enough to predict with, and the checksums of all arrays. Saving is asynchronous
and atomic: a step appears under its number only when it is complete. The scores
of a step are added to it as `scores.json` when it has been evaluated.
"""

import contextlib
import json
import math
import os
from typing import Any

from absl import logging
from etils import epath
import orbax.checkpoint.experimental.v1 as ocp

from vit_jax.files import (
  is_remote,
  list_directory,
  read_text,
  write_atomically,
)
from vit_jax.parallel import processes
from vit_jax.weights import checksums
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.steps import (
  CHECKSUMS,
  COMMITTED,
  FOLDER,
  STEP,
  CheckpointError,
  absolute,
  check_path,
  describe_mismatch,
  is_complete,
  list_steps,
  orbax_context,
  read_step,
)

_SCORES = 'scores.json'
_UNREADABLE = '.unreadable'
_DELETED = '.deleted'
_TEMPORARY = '.orbax-checkpoint-tmp'


class Checkpoints:
  """The saved steps of one workdir.

  Steps that none of the `keep_` arguments keeps are deleted.

  Args:
    workdir: local or remote directory.
    keep_latest: number of newest steps that are kept, at least 1. With 2 there
      is a step to go back to when the newest one is damaged.
    keep_best: number of best steps that are kept.
    keep_every: steps that are multiples of this number are kept.
    metric: name in the `scores` of `score` that says which steps are best;
      larger is better.

  Raises:
    CheckpointError: the path cannot be used, or a file stands in its way.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    keep_latest: int = 2,
    keep_best: int = 0,
    keep_every: int | None = None,
    metric: str = '',
  ):
    check_path(workdir)
    self.directory = absolute(workdir) / FOLDER
    self._latest, self._best = max(1, keep_latest), keep_best
    self._every, self._metric = keep_every, metric
    if processes.is_first():
      _make_directory(self.directory)
      _remove_unfinished(self.directory)
    # All processes take the list of process 0, because a network file system
    # can show a change to one of them later than to another.
    self._steps: list[int] = processes.broadcast_from_first(
      [int(path.name) for path in list_steps(self.directory)]
    )
    self._scores: dict[int, dict[str, float]] = {}
    self._saving: Any = None  # Orbax's response of the save in progress
    self._saved = -1  # the step that was saved last

  def steps(self) -> list[int]:
    """The saved steps, oldest first."""
    return list(self._steps)

  def save(self, step: int, tree: Any, metadata: WeightsMetadata) -> None:
    """Starts saving, and returns when the device arrays have been copied.

    A step that is already saved stays as it is.

    Args:
      step: number of finished steps.
      tree: the state as nested dicts of arrays.
      metadata: stored beside the state.

    Raises:
      CheckpointError: this save or the one before it failed.
    """
    self.wait()
    if step in self._steps:
      return
    path, self._saved = self.directory / str(step), step
    with self._explained():
      if processes.is_first() and _is_there(path):
        logging.warning('%s is no step and is renamed', path)
        _set_aside(path)
      record = metadata.to_json()
      record[CHECKSUMS] = checksums.merge(
        processes.gather(checksums.of_tree(tree))
      )
      with orbax_context():
        self._saving = ocp.save_async(
          path, tree, custom_metadata=checksums.seal(record)
        )

  def score(self, step: int, scores: dict[str, float]) -> None:
    """Adds the scores of evaluating a step, for `keep_best`.

    Steps that are not saved are ignored.
    """
    self._scores[step] = scores
    if step in self._steps:
      self._write_scores(step)

  def wait(self) -> None:
    """Waits for the save in progress; CheckpointError if it failed."""
    if self._saving is None:
      return
    saving, self._saving = self._saving, None
    with self._explained():
      saving.result()
      self._steps = sorted({*self._steps, self._saved})
      if self._saved in self._scores:
        self._write_scores(self._saved)
      self._delete_old()

  @contextlib.contextmanager
  def _explained(self):
    """Turns any error of saving into a CheckpointError that says what to do."""
    try:
      yield
    except Exception as e:
      raise CheckpointError(
        f'saving step {self._saved} to {self.directory} failed: {e}\n'
        'The steps saved before it are intact. Free space or fix the '
        'permissions, then start the same command again.'
      ) from e

  def _write_scores(self, step: int) -> None:
    if not processes.is_first():
      return
    path = self.directory / str(step) / _SCORES
    try:
      write_atomically(path, json.dumps(self._scores[step]))
    except OSError as e:  # the scores only help to choose what is kept
      logging.warning('%s could not be written: %s', path, e)

  def _delete_old(self) -> None:
    """Deletes the steps that are not to be kept."""
    kept = set(self._steps[-self._latest :])
    if self._every:
      kept |= {step for step in self._steps if step % self._every == 0}
    if self._best and processes.is_first():
      scored = [(self._score(step), step) for step in self._steps]
      scored = sorted(pair for pair in scored if pair[0] is not None)
      kept |= {step for _, step in scored[-self._best :]}
    kept = set(processes.broadcast_from_first(sorted(kept)))
    for step in [step for step in self._steps if step not in kept]:
      self._steps.remove(step)
      if processes.is_first():
        _delete(self.directory / str(step))

  def _score(self, step: int) -> float | None:
    """The number by which steps are compared; None if it is not known."""
    if step not in self._scores:
      self._scores[step] = _read_scores(self.directory / str(step))
    score = self._scores[step].get(self._metric)
    return score if score is not None and math.isfinite(score) else None

  def restore(self, abstract: Any) -> tuple[Any, WeightsMetadata, int] | None:
    """Loads the newest step that can be read, of whatever reason it was kept.

    Damaged steps that are newer are named in the log and kept under the name
    `STEP.unreadable`, so that the run can write these steps again.

    Args:
      abstract: tree of shapes, dtypes and shardings to load into.

    Returns:
      The tree, its metadata and the step; None if there is no step.

    Raises:
      CheckpointError: the newest sound step differs from `abstract`, or there
        are steps and none can be read.
    """
    damaged: dict[int, str] = {}
    for step in reversed(self._steps):
      path = self.directory / str(step)
      tree, record, problem = None, {}, ''
      try:
        tree, record = read_step(path, abstract)
        metadata = WeightsMetadata.from_json(record)
      except Exception as e:  # Orbax raises many kinds for damaged files
        problem = f'{type(e).__name__}: {str(e).splitlines()[0][:160]}'
        mismatch = describe_mismatch(path, abstract)
        if mismatch and _is_sound(path):
          raise CheckpointError(
            f'{path} does not fit this recipe: {mismatch}\nUse another '
            'workdir, or the recipe that made it.'
          ) from e
      # A step counts only if every process could read its shards of it.
      problem = '; '.join(
        f'process {i}: {x}' if processes.current_job() else x
        for i, x in enumerate(processes.gather(problem))
        if x
      )
      if not problem:
        for other in damaged:
          self._set_aside(other)
        return tree, metadata, step
      damaged[step] = problem
      logging.error(
        'checkpoint %s is unreadable (%s); falling back to the step before it',
        path,
        problem,
      )
    self._raise_if_lost(damaged)
    return None

  def _raise_if_lost(self, damaged: dict[int, str]) -> None:
    """Raises if a run has been here of which nothing can be read.

    Its steps keep their names, because the reason may pass, such as missing
    permissions or a disk that does not answer.
    """
    aside = []
    if processes.is_first():
      aside = [
        path.name
        for path in list_directory(self.directory)
        if _UNREADABLE in path.name and path.is_dir()
      ]
    aside = processes.broadcast_from_first(aside)
    names = [str(step) for step in damaged] + sorted(aside)
    if names:
      reason = next(iter(damaged.values()), 'found damaged by an earlier start')
      raise CheckpointError(
        f'{self.directory} has steps of which none can be read: '
        f'{", ".join(names[:5])} ({reason}). Nothing was changed. Restore them '
        'from a copy; or, to train from the beginning, take another workdir '
        f'or remove {self.directory}'
      )

  def _set_aside(self, step: int) -> None:
    """Renames a damaged step, so that it no longer counts as a step."""
    if processes.is_first():
      path = self.directory / str(step)
      logging.error('%s is kept as %s', path, _set_aside(path).name)
    self._steps.remove(step)
    processes.barrier(f'setting step {step} aside')

  def close(self) -> None:
    """Waits; an error that was raised before is not repeated."""
    self.wait()


def _is_sound(path: epath.Path) -> bool:
  """Whether a step can be read with the shapes that it was saved with."""
  try:
    return bool(read_step(path)[0])
  except Exception:
    return False


def _is_there(path: epath.Path) -> bool:
  """Whether a name is taken, be it by a link to nothing."""
  return path.exists() or (not is_remote(path) and os.path.lexists(path))


def _set_aside(path: epath.Path) -> epath.Path:
  """Renames what is no usable step to a free name, and returns that name."""
  new, number = path.with_name(f'{path.name}{_UNREADABLE}'), 1
  while _is_there(new):
    number += 1
    new = path.with_name(f'{path.name}{_UNREADABLE}.{number}')
  path.rename(new)
  return new


def _make_directory(directory: epath.Path) -> None:
  for path in (directory.parent, directory):
    if _is_there(path) and not path.is_dir():
      raise CheckpointError(
        f'{path} is no directory: take another workdir, or rename that file'
      )
  directory.mkdir(parents=True, exist_ok=True)


def _remove_unfinished(directory: epath.Path) -> None:
  """Removes what killed saves and killed deletions left behind."""
  for path in list_directory(directory):
    unfinished = (
      _TEMPORARY in path.name
      or path.name.endswith(_DELETED)
      # A bucket cannot rename, so a step has its own name from the beginning.
      or (
        is_remote(path) and STEP.fullmatch(path.name) and not is_complete(path)
      )
    )
    if unfinished and path.is_dir():
      path.rmtree(missing_ok=True)


def _delete(path: epath.Path) -> None:
  """Deletes a step; a process that is killed meanwhile leaves no half of it."""
  try:
    if is_remote(path):
      (path / COMMITTED).unlink(missing_ok=True)
    else:
      path = path.rename(path.with_name(f'{path.name}{_DELETED}'))
    path.rmtree(missing_ok=True)
  except OSError as e:
    logging.warning('the old step %s could not be deleted: %s', path, e)


def _read_scores(step: epath.Path) -> dict[str, float]:
  """The scores of a saved step; {} if it has none that can be read."""
  # Version 0.1.0 wrote them as an item of Orbax.
  for path in (step / _SCORES, step / 'metrics' / 'metrics'):
    try:
      scores = json.loads(read_text(path))
      return {str(k): float(v) for k, v in scores.items()}
    except (OSError, ValueError, TypeError, AttributeError):
      continue
  return {}
