"""Reads the checkpoint steps that training wrote."""

import os
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from vit_jax.weights.metadata import WeightsMetadata

FOLDER = 'checkpoints'


class CheckpointError(ValueError):
  """A checkpoint is missing, cannot be read, or is of another recipe."""


def absolute(path: str | os.PathLike) -> epath.Path:
  """The path in the form that Orbax needs: a local path must be absolute."""
  if '://' in str(path):
    return epath.Path(path)
  return epath.Path(path).expanduser().resolve()


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


def find_step(path: str | os.PathLike) -> epath.Path | None:
  """The newest step in a workdir, `path` itself if it is a step, or None."""
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


def read_metadata(step: epath.Path) -> WeightsMetadata:
  """The metadata that was saved with a step."""
  stored: Any = ocp.metadata(step).custom_metadata
  return WeightsMetadata.from_json(stored or {})


def load_tree(
  path: str | os.PathLike, abstract: Any = None
) -> tuple[Any, WeightsMetadata, epath.Path]:
  """Loads the newest step of a workdir, or a given step.

  Args:
    path: a workdir, its directory of steps, or a step.
    abstract: the expected tree of shapes, with the shardings of the result.
      None loads all arrays that the step has as numpy arrays.

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
    if abstract is None:
      stored = ocp.metadata(step).metadata
      abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)
    tree = ocp.load(step, abstract)
    metadata = read_metadata(step)
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
