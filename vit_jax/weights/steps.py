"""Reads the checkpoint steps that training wrote."""

import os
import re
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from vit_jax.files import (
  as_path,
  check_regular,
  is_remote,
  list_directory,
)
from vit_jax.weights import checksums
from vit_jax.weights.metadata import WeightsMetadata

FOLDER = 'checkpoints'
CHECKSUMS = checksums.ENTRY
# The file that Orbax writes into a step in a bucket as the last one.
COMMITTED = 'commit_success.txt'
_RECORD = '_CHECKPOINT_METADATA'
# Only canonical numbers in ASCII digits: int() would also take '²' or '007'.
STEP = re.compile('0|[1-9][0-9]*', re.ASCII)


class CheckpointError(ValueError):
  """A checkpoint is missing, cannot be read, or is of another recipe."""


def absolute(path: str | os.PathLike) -> epath.Path:
  """The path in the form that Orbax needs: a local path must be absolute."""
  if is_remote(path):
    return as_path(path)
  return as_path(path).resolve()


def describe_mismatch(path: str | os.PathLike, abstract: Any) -> str:
  """Describes how the tree in a step differs from an expected one.

  Args:
    path: the step.
    abstract: the expected tree, of arrays or shapes.

  Returns:
    Up to five differences; '' if there are none, or if the step is too damaged
    to be compared.
  """
  try:
    _check_files(epath.Path(path))
    stored = ocp.metadata(epath.Path(path)).metadata
    stored = {
      jax.tree_util.keystr(p, simple=True, separator='/'): tuple(x.shape)
      for p, x in jax.tree_util.tree_leaves_with_path(stored)
    }
  except Exception:  # a damaged step, whose shapes cannot be read
    return ''
  expected = {
    jax.tree_util.keystr(p, simple=True, separator='/'): tuple(x.shape)
    for p, x in jax.tree_util.tree_leaves_with_path(abstract)
  }
  lines = [f'missing {k} {v}' for k, v in expected.items() if k not in stored]
  lines += [
    f'left over {k} {v}' for k, v in stored.items() if k not in expected
  ]
  lines += [
    f'{k} is {stored[k]}, expected {v}'
    for k, v in expected.items()
    if k in stored and stored[k] != v
  ]
  return '; '.join(lines[:5]) + (
    f'; and {len(lines) - 5} more' if len(lines) > 5 else ''
  )


def check_path(path: str | os.PathLike) -> None:
  """Raises CheckpointError for a directory in which no step can be saved.

  Orbax takes paths for patterns of file names when it puts the files of a step
  together.
  """
  special = sorted(set('*?[') & set(str(absolute(path))))
  if special:
    raise CheckpointError(
      f'{absolute(path)} has {" and ".join(map(repr, special))} in its path, '
      'with which checkpoints cannot be saved: take another workdir, or rename '
      'the directory that has it'
    )


def find_step(path: str | os.PathLike) -> epath.Path | None:
  """The newest step in a workdir, `path` itself if it is a step, or None."""
  path = absolute(path)
  if not path.is_dir():
    return None
  if STEP.fullmatch(path.name) and (path / _RECORD).exists():
    return path
  steps = list_steps(path if path.name == FOLDER else path / FOLDER)
  return steps[-1] if steps else None


def list_steps(folder: epath.Path) -> list[epath.Path]:
  """The steps in a directory of steps, oldest first.

  Whatever else lies there, such as files, links to nothing and saves that were
  not finished, does not count.
  """
  if not is_remote(folder) and not folder.is_dir():
    return []
  steps = [
    path
    for path in list_directory(folder)
    if STEP.fullmatch(path.name) and path.is_dir() and is_complete(path)
  ]
  return sorted(steps, key=lambda path: int(path.name))


def is_complete(step: epath.Path) -> bool:
  """Whether the writer of a step came to its end.

  A step gets its name at the end. Buckets cannot rename, and there Orbax writes
  a file as the last one.
  """
  return not is_remote(step) or (step / COMMITTED).exists()


def orbax_context() -> ocp.Context:
  """How all steps are written and read.

  Two kinds of files that Orbax would write are left out, because a damaged one
  would make a sound step unreadable: those of shardings, which the reader
  gives, and those of array metadata, which matter only for arrays that are cut
  into subchunks.
  """
  context = ocp.Context()
  context.array.saving.array_metadata_store = None
  context.array.saving.enable_write_sharding_file = False
  return context


def _check_files(step: epath.Path) -> None:
  """Raises CheckpointError if a file of a local step is a pipe or device.

  Orbax would read one without end.
  """
  if is_remote(step):
    return
  for folder, _, names in os.walk(step):
    for name in names:
      try:
        check_regular(os.path.join(folder, name))
      except OSError as e:
        raise CheckpointError(f'{os.path.join(folder, name)}: {e}') from e


def read_record(step: epath.Path) -> dict[str, Any]:
  """The JSON values that a step was saved with.

  Raises:
    CheckpointError: they are not those that were written.
  """
  _check_files(step)
  # Orbax gives None for a file that it cannot read.
  record: Any = ocp.metadata(step).custom_metadata
  if not record or not checksums.is_sealed_correctly(record):
    raise CheckpointError(
      f'{step / _RECORD} is damaged: its values are not those that were written'
    )
  return record


def read_metadata(step: epath.Path) -> WeightsMetadata:
  """The metadata that was saved with a step."""
  return WeightsMetadata.from_json(read_record(step))


def read_step(
  step: epath.Path, abstract: Any = None
) -> tuple[Any, dict[str, Any]]:
  """The arrays and the record of one step, held against its checksums.

  Args:
    step: directory.
    abstract: tree of shapes (with shardings) to load into; without it, all
      arrays are plain numpy, whatever devices wrote them.

  Raises:
    CheckpointError: an array or the record is not what was written.
    Exception: Orbax raises many kinds for files that are damaged or missing.
  """
  _check_files(step)
  with orbax_context():
    # With `abstract`, Orbax loads the arrays without this, but other readers of
    # the step, such as `predict`, could not. It gives None for damaged values.
    stored = ocp.metadata(step).metadata
    if stored is None:
      raise CheckpointError(
        f'{step} is damaged: the names and types of its arrays cannot be read'
      )
    if abstract is None:
      abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)
    record = read_record(step)
    tree = ocp.load(step, abstract)
  if CHECKSUMS not in record:
    logging.warning(
      '%s has no checksums, because version 0.1.0 wrote it: damage to its '
      'arrays would not be noticed',
      step,
    )
    return tree, record
  damaged, unchecked = checksums.compare(tree, record[CHECKSUMS])
  if damaged:
    raise CheckpointError(
      f'{step} is damaged: the checksums of {len(damaged)} of its '
      f'{len(record[CHECKSUMS])} arrays are not those that were written: '
      f'{", ".join(damaged[:3])}{", ..." if len(damaged) > 3 else ""}'
    )
  if unchecked:
    logging.warning(
      '%s: %d of %d arrays were not held against their checksums, because '
      'they are sharded or typed in another way than when they were written; '
      '`vit-jax verify` checks them',
      step,
      len(unchecked),
      len(record[CHECKSUMS]),
    )
  return tree, record


def stored_metadata(path: str | os.PathLike) -> WeightsMetadata:
  """The record of the newest step of a workdir whose record can be read.

  Args:
    path: workdir, its directory of steps, or a step.

  Returns:
    An empty record if there is none.
  """
  newest = find_step(path)
  if newest is None:
    return WeightsMetadata()
  steps = [newest]
  if absolute(path) != newest:
    steps = list_steps(newest.parent)[::-1]
  for step in steps:
    try:
      return read_metadata(step)
    except Exception:  # a damaged step; `Checkpoints.restore` names it
      continue
  return WeightsMetadata()


def load_tree(
  path: str | os.PathLike, abstract: Any = None
) -> tuple[Any, WeightsMetadata, epath.Path]:
  """Loads the newest step of a workdir, or a given step.

  Args:
    path: a workdir, its directory of steps, or a step.
    abstract: see `read_step`.

  Returns:
    The tree, its metadata and the path of the step.

  Raises:
    CheckpointError: there is no step, or it cannot be read or differs from
      `abstract`.
  """
  step = find_step(path)
  if step is None:
    raise CheckpointError(
      f'{path} has no checkpoint: give a workdir with {FOLDER}/STEP, or a step'
    )
  try:
    tree, record = read_step(step, abstract)
    metadata = WeightsMetadata.from_json(record)
  except Exception as e:
    mismatch = describe_mismatch(step, abstract) if abstract else ''
    raise CheckpointError(f'{step} cannot be read: {mismatch or e}') from e
  return tree, metadata, step


def load_params(
  path: str | os.PathLike, *, average: bool = False
) -> tuple[dict[str, np.ndarray], WeightsMetadata]:
  """Loads the parameters and running statistics of a workdir or step.

  Args:
    path: a workdir or a step.
    average: whether to load their moving averages, if the step has them.

  Returns:
    {'params/...': array, 'batch_stats/...': array}, and the metadata.

  Raises:
    CheckpointError: there is no step, or it cannot be read.
  """
  tree, metadata, _ = load_tree(path)
  averaged = average and tree.get('ema')
  params = tree['ema'] if averaged else tree['params']
  # A step has averages of the statistics only if optim.ema_stats was set, and
  # never if vit_jax 0.1.0 wrote it.
  stats = (averaged and tree.get('ema_stats')) or tree['batch_stats']
  flat = {}
  collections = {'params': params, 'batch_stats': stats}
  for name, collection in collections.items():
    for p, x in jax.tree_util.tree_leaves_with_path(collection):
      flat[name + '/' + jax.tree_util.keystr(p, simple=True, separator='/')] = (
        np.asarray(x)
      )
  return flat, metadata
