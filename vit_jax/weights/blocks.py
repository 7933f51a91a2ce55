"""Stacked (scanned) blocks <-> blocks one by one.

A scanned model has one array 'block/kernel' whose leading axis is the depth,
where an unrolled model has 'block_0/kernel', 'block_1/kernel' and so on.
"""

from collections.abc import Iterable, Mapping
import re

import numpy as np


def _members_of_stacks(names: Iterable[str]) -> dict[str, list[str]]:
  """Name of each possible stack -> the names of its blocks, by number.

  'a/block_0/x' and 'a/block_1/x' are the members of 'a/block/x'.
  """
  stacks: dict[str, list[tuple[int, str]]] = {}
  for name in names:
    folders = name.split('/')
    for i, folder in enumerate(folders):
      match = re.fullmatch(r'(.+)_(\d+)', folder)
      if match:
        stacked = '/'.join([*folders[:i], match[1], *folders[i + 1 :]])
        stacks.setdefault(stacked, []).append((int(match[2]), name))
  return {
    stacked: [name for _, name in sorted(members)]
    for stacked, members in stacks.items()
  }


def unstack_blocks(
  flat: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, np.ndarray]:
  """Splits stacks into blocks where `names` lists the blocks one by one.

  Args:
    flat: {name: array}; a stack is '.../block/...' with the depth as its
      leading axis.
    names: wanted names, such as '.../block_0/...'. Blocks that are already
      single in `flat`, such as the leading area-attention blocks of a scanned
      model, are kept; a stack is then split into the remaining numbers.

  Returns:
    `flat` with each stack replaced by its blocks, if their number agrees.
  """
  names = set(names)
  stacks = _members_of_stacks(names - set(flat))
  out = {}
  for name, x in flat.items():
    members = stacks.get(name, [])
    if name not in names and members and len(members) == x.shape[0]:
      out |= {member: x[i] for i, member in enumerate(members)}
    else:
      out[name] = x
  return out


def stack_blocks(
  flat: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, np.ndarray]:
  """Stacks blocks along a leading axis where `names` lists them as a stack.

  Args:
    flat: {name: array} with blocks one by one.
    names: wanted names; others are left out of the result.

  Returns:
    {name: array} of the wanted names that `flat` has or can be stacked to.
  """
  names = set(names)
  out = {name: x for name, x in flat.items() if name in names}
  stacks = _members_of_stacks(set(flat) - names)
  for name in names - set(flat):
    if name in stacks:
      out[name] = np.stack([flat[member] for member in stacks[name]])
  return out
