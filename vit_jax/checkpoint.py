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
from etils import epath
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from vit_jax import sharding

FOLDER = 'checkpoints'


class CheckpointError(ValueError):
  """A checkpoint that is missing, unreadable, or of another recipe."""


def absolute(path) -> epath.Path:
  """The path as Orbax wants it: absolute where it is local."""
  if '://' in str(path):
    return epath.Path(path)
  return epath.Path(path).expanduser().resolve()


class Checkpoints:
  """The steps of one workdir.

  Args:
    workdir: local or remote directory.
    keep_latest, keep_best: how many newest and best steps stay.
    keep_every: steps that are multiples of it stay too.
    metric: name in `metrics` of `save` that ranks steps, larger is better.
  """

  def __init__(self, workdir, *, keep_latest: int = 1, keep_best: int = 0,
               keep_every: int | None = None, metric: str = ''):
    self.directory = absolute(workdir) / FOLDER
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(max(1, keep_latest))]
    if keep_best:
      keep.append(policies.BestN(
          get_metric_fn=lambda metrics: metrics[metric], n=keep_best,
          keep_checkpoints_without_metrics=False))
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    self._orbax = ocp.training.Checkpointer(
        self.directory,
        save_decision_policy=ocp.training.save_decision_policies
        .FixedIntervalPolicy(1),  # the loop decides when
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True)  # of a killed save
    self._saved = None
    self._failed = False  # an error was raised to the caller

  def steps(self) -> list[int]:
    return [c.step for c in self._orbax.checkpoints]

  def save(self, step: int, tree, metadata: dict[str, Any],
           metrics: dict[str, float] | None = None):
    """Starts saving; returns when the device arrays have been copied."""
    self.wait()
    if step in self.steps():
      return
    self._saved = step
    with self._explained():
      self._orbax.save_async(step, tree, force=True, metrics=metrics,
                             custom_metadata=metadata)

  def wait(self):
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
          'permissions, then start the same command again.') from e

  def restore(self, abstract):
    """The newest readable step: (tree, metadata, step), None if there is none.

    A step that cannot be read is named in the log, set aside under
    `STEP.unreadable` (never deleted), and the one before it is taken.
    """
    for step in reversed(self.steps()):
      path = self.directory / str(step)
      try:
        tree = self._orbax.load(step, abstract)
        metadata = self._orbax.metadata(step).custom_metadata or {}
        return tree, metadata, step
      except Exception as e:  # whatever a torn file makes Orbax raise
        if _is_whole(path):  # then it is of another recipe, not torn
          mismatch = describe_mismatch(path, abstract) or e
          raise CheckpointError(
              f'{path} does not fit this recipe: {mismatch}\nUse another '
              'workdir, or the recipe that made it.') from e
        logging.error('checkpoint %s is unreadable (%s: %s); '
                      'falling back to the step before it', path,
                      type(e).__name__, str(e).split('\n')[0][:120])
        if jax.process_index() == 0:
          path.rename(self.directory / f'{step}.unreadable')
        if jax.process_count() > 1:
          from jax.experimental import multihost_utils
          multihost_utils.sync_global_devices(f'unreadable {step}')
        self._orbax.reload()
    return None

  def close(self):
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


def describe_mismatch(path, abstract) -> str:
  """What differs between a stored tree and an expected one, '' if nothing."""
  try:
    stored = ocp.metadata(path).metadata
    stored = {sharding.path_string(p): tuple(x.shape) for p, x in
              jax.tree_util.tree_leaves_with_path(stored)}
  except Exception:  # not even the metadata can be read: torn, not mismatched
    return ''
  expected = {sharding.path_string(p): tuple(x.shape) for p, x in
              jax.tree_util.tree_leaves_with_path(abstract)}
  lines = [f'missing {k} {v}' for k, v in expected.items() if k not in stored]
  lines += [f'left over {k} {v}' for k, v in stored.items()
            if k not in expected]
  lines += [f'{k} is {stored[k]}, expected {v}' for k, v in expected.items()
            if k in stored and stored[k] != v]
  return '; '.join(lines[:5]) + (
      f'; and {len(lines) - 5} more' if len(lines) > 5 else '')


def find_step(path) -> epath.Path | None:
  """The newest step of a workdir, or `path` itself if it is a step."""
  path = absolute(path)
  if not path.is_dir():
    return None
  if path.name.isdigit() and (path / '_CHECKPOINT_METADATA').exists():
    return path
  folder = path if path.name == FOLDER else path / FOLDER
  if not folder.is_dir():
    return None
  steps = [p for p in folder.iterdir() if p.name.isdigit()]
  return max(steps, key=lambda p: int(p.name)) if steps else None


def load_tree(path, abstract=None):
  """A workdir's newest step or a step: (tree, metadata, step path)."""
  step = find_step(path)
  if step is None:
    raise CheckpointError(
        f'{path} is neither a workdir with {FOLDER}/STEP nor a step')
  try:
    if abstract is None:  # plain numpy, whatever devices wrote it
      stored = ocp.metadata(step).metadata
      abstract = jax.tree.map(
          lambda x: np.empty(x.shape, x.dtype), stored)
    tree = ocp.load(step, abstract)
    metadata = ocp.metadata(step).custom_metadata or {}
  except Exception as e:
    mismatch = describe_mismatch(step, abstract) if abstract else ''
    raise CheckpointError(
        f'{step} cannot be read: {mismatch or e}') from e
  return tree, metadata, step


def load_params(path, *, average: bool = False):
  """Parameters and statistics of a workdir or step, for the weights loader.

  Args:
    path: workdir or step directory.
    average: take the moving average where the step has one.

  Returns:
    flat dict {'params/...': array, 'batch_stats/...': array} and metadata.
  """
  tree, metadata, _ = load_tree(path)
  params = tree['ema'] if average and tree.get('ema') else tree['params']
  flat = {}
  for name, part in (('params', params), ('batch_stats', tree['batch_stats'])):
    for p, x in jax.tree_util.tree_leaves_with_path(part):
      flat[f'{name}/{sharding.path_string(p)}'] = np.asarray(x)
  return flat, metadata
