"""Checks the steps of a workdir, for `vit-jax verify`."""

from collections.abc import Sequence
import dataclasses
import os

from etils import epath
import jax

from vit_jax.weights.steps import (
  CHECKSUMS,
  FOLDER,
  CheckpointError,
  absolute,
  find_step,
  list_steps,
  read_step,
)


@dataclasses.dataclass(frozen=True)
class StepState:
  """What is known of a step.

  Attributes:
    path: its directory.
    sound: whether it can be read and is what was written.
    has_checksums: whether it could be compared.
    description: one line.
  """

  path: epath.Path
  sound: bool
  has_checksums: bool
  description: str


def verify(path: str | os.PathLike) -> Sequence[StepState]:
  """Reads all steps of a workdir, oldest first; or one step.

  Args:
    path: workdir, its directory of steps, or a step.

  Raises:
    CheckpointError: there is no step.
  """
  newest = find_step(path)
  if newest is None:
    raise CheckpointError(
      f'{path} is neither a workdir with {FOLDER}/STEP nor a step'
    )
  if newest == absolute(path):
    return [_verify(newest)]
  return [_verify(step) for step in list_steps(newest.parent)]


def _verify(step: epath.Path) -> StepState:
  try:
    tree, record = read_step(step)
  except Exception as e:  # Orbax raises many kinds for damaged files
    reason = str(e).splitlines()[0] if str(e) else type(e).__name__
    return StepState(step, False, False, f'damaged: {reason[:300]}')
  arrays = jax.tree.leaves(tree)
  size = sum(x.nbytes for x in arrays) / 1e6
  counted = f'{len(arrays)} arrays, {size:,.1f} MB'
  if CHECKSUMS not in record:
    return StepState(
      step, True, False, f'readable, {counted}; written without checksums'
    )
  return StepState(step, True, True, f'sound, {counted}')
