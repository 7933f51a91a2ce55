"""Stacked (scanned) blocks <-> blocks one by one.

A scanned model keeps `block/kernel` with a leading depth axis for the
`block_0/kernel`, `block_1/kernel`, ... of an unrolled one.
"""

import re

import numpy as np


def _stacks(names) -> dict[str, list[str]]:
  """Stacked name -> members: 'a/block/x' -> ['a/block_0/x', 'a/block_1/x']."""
  stacks = {}
  for name in names:
    parts = name.split('/')
    for i, part in enumerate(parts):
      m = re.fullmatch(r'(.+)_(\d+)', part)
      if m:
        stacked = '/'.join([*parts[:i], m[1], *parts[i + 1 :]])
        stacks.setdefault(stacked, []).append((int(m[2]), name))
  return {
    stacked: [name for _, name in sorted(members)]
    for stacked, members in stacks.items()
  }


def unstack_blocks(flat: dict, names) -> dict:
  """Takes stacks apart where `names` has the blocks one by one.

  Args:
    flat: {name: array}; a stack is '.../block/...' with a leading depth axis.
    names: wanted names, such as '.../block_0/...'. The first blocks may stand
      alone on both sides; the stack is then of the rest.

  Returns:
    `flat` with every stack that fits replaced by its blocks.
  """
  names = set(names)
  stacks = _stacks(names - set(flat))
  out = {}
  for name, x in flat.items():
    members = stacks.get(name, ())
    if name not in names and members and len(members) == x.shape[0]:
      out |= {member: x[i] for i, member in enumerate(members)}
    else:
      out[name] = x
  return out


def stack_blocks(flat: dict, names) -> dict:
  """Stacks blocks along a leading axis where `names` has them as one."""
  names = set(names)
  out = {name: x for name, x in flat.items() if name in names}
  stacks = _stacks(set(flat) - names)
  for name in names - set(flat):
    if name in stacks:
      out[name] = np.stack([flat[member] for member in stacks[name]])
  return out
