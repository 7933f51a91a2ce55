"""Converts between stacked blocks, of a scanned model, and single blocks.

A scanned model has one array 'block/kernel' whose leading axis is the depth. An
unrolled model has 'block_0/kernel', 'block_1/kernel' and so on.
"""

from collections.abc import Iterable, Mapping
import re

import numpy as np


def _members_of_stacks(names: Iterable[str]) -> dict[str, list[str]]:
  """The stacks that some names could be the blocks of.

  Args:
    names: such as 'a/block_0/x' and 'a/block_1/x'.

  Returns:
    {name of a stack, such as 'a/block/x': its blocks' names, by number}.
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
  """Splits stacks into the single blocks that `names` lists.

  Args:
    flat: {name: array}; a stack is '.../block/...' with the depth as its
      leading axis.
    names: names of the result, such as '.../block_0/...'. Single blocks that
      `flat` has, such as the leading area-attention blocks of a scanned model,
      are kept, and a stack is split into the blocks with the other numbers.

  Returns:
    `flat`, in which each stack is replaced by its blocks. A stack whose length
    is not the number of blocks in `names` is kept.
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
  """Stacks single blocks along a leading axis where `names` lists a stack.

  Args:
    flat: {name: array} with single blocks.
    names: names of the result, such as '.../block/...'; arrays of `flat` that
      are not among them are left out.

  Returns:
    {name: array} for those of `names` that are in `flat`, or whose blocks are.
  """
  names = set(names)
  out = {name: x for name, x in flat.items() if name in names}
  stacks = _members_of_stacks(set(flat) - names)
  for name in names - set(flat):
    if name in stacks:
      out[name] = np.stack([flat[member] for member in stacks[name]])
  return out
