"""Detects the format of a file from the names of its tensors."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
import types

from flax import linen as nn
import numpy as np

from vit_jax.weights import naming, prefixes
from vit_jax.weights.blocks import unstack_blocks

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Detected:
  """The arrays of a file, named as in the format that fits them best.

  Attributes:
    fmt: the format, a key of `known_formats`.
    assigned: {Flax path: (rule, released name)} of all of the model's paths
      that the format has a name for.
    arrays: {released name: array} of the file, without prefixes of training
      programs and with stacked blocks split.
    outside: arrays of the file that have another prefix than the parameters,
      such as optimizer state.
    prefix: what stood before the names of the parameters.
  """

  fmt: str
  assigned: naming.Assignment
  arrays: Arrays
  outside: Arrays
  prefix: str = ''

  @property
  def expected(self) -> set[str]:
    """Released names of the model's parameters."""
    return {name for _, name in self.assigned.values()}

  def fits(self) -> bool:
    """Whether at least half of the expected names are in the file."""
    names = [name for _, name in self.assigned.values()]
    return 2 * sum(name in self.arrays for name in names) >= len(names)


def detect(
  model: nn.Module,
  paths: Iterable[str],
  arrays: Mapping[str, np.ndarray],
  fmt: str | None = None,
) -> Detected:
  """Chooses the format in which most names of a file are the model's.

  Args:
    model: a Linen module, not scanned.
    paths: Flax paths of its variables.
    arrays: {name in the file: array}.
    fmt: the format, if it is known; None tries all.

  Raises:
    WeightsError: `fmt` is not a format of this model.
  """
  module = naming.map_module(model)
  candidates = (
    naming.known_formats(model)
    if fmt is None
    else {fmt: naming.rules_of(model, fmt)}
  )
  paths = list(paths)
  assignments = {
    name: naming.assign(rules, paths) for name, rules in candidates.items()
  }
  names = {
    released
    for assigned in assignments.values()
    for _, released in assigned.values()
  }
  prefix, inside, outside = prefixes.select(arrays, names.__contains__)
  results = []
  for name, assigned in assignments.items():
    expected = {released for _, released in assigned.values()}
    renamed = _rename(inside, expected, module)
    explained = len(expected & renamed.keys())
    unexplained = len(renamed.keys() - expected)
    results.append(
      (
        (explained, -unexplained),
        Detected(name, assigned, renamed, outside, prefix),
      )
    )
  return max(results, key=lambda result: result[0])[1]


def _rename(
  arrays: Arrays, expected: set[str], module: types.ModuleType | None
) -> Arrays:
  """Applies the ALIASES of a module of `maps`, and splits stacked blocks.

  ALIASES are (regex, replacement) for names that are not expected.
  """
  for pattern, name in getattr(module, 'ALIASES', ()):
    renamed = {}
    for old, x in arrays.items():
      new = old if old in expected else re.sub(pattern, name, old)
      renamed[new if new not in arrays else old] = x
    arrays = renamed
  return unstack_blocks(arrays, expected)


def other_architecture(
  source: str, model: nn.Module, detected: Detected
) -> str:
  """The error message for a file that is of another architecture."""
  arrays, expected = detected.arrays, detected.expected
  total = len(detected.assigned)
  known = sum(name in arrays for _, name in detected.assigned.values())

  def sample(names: set[str]) -> str:
    return ', '.join(
      f'{name} {tuple(arrays[name].shape)}' if name in arrays else name
      for name in sorted(names)[:3]
    )

  return (
    f'{source} is not a file of {type(model).__name__}: it has {known} '
    f'of the {total} tensors of the nearest known naming '
    f'({detected.fmt}). It has '
    f'{sample(arrays.keys() - expected) or "nothing else"}, and not '
    f'{sample(expected - arrays.keys())}. '
    'Name the model that the file is for (vit-jax models lists all names).'
  )
