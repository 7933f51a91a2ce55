"""Factors of learning rate and weight decay for every parameter.

Parameter paths are written 'Transformer/encoderblock_0/MlpBlock_0/...'.
"""

import dataclasses
import difflib
import functools
import re
from typing import Any

import jax
import numpy as np

# A JAX key path as 'Transformer/encoderblock_0/...'.
path_name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')


def flat_paths(params: Any) -> dict[str, Any]:
  """{path: leaf} in tree order."""
  return {
    path_name(p): leaf
    for p, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


@dataclasses.dataclass(frozen=True)
class Rate:
  """How fast one parameter moves.

  Attributes:
    lr: factor of the learning rate: a float, or an array (L, 1, ..., 1) for a
      stack of L scanned blocks.
    decay: factor of the weight decay.
    frozen: whether the parameter never changes. It then has no optimizer state,
      and its gradient does not count in the norm that is clipped.
  """

  lr: float | np.ndarray = 1.0
  decay: float = 0.0
  frozen: bool = False


# Stacks of blocks, in the order of the forward pass. The regex group is the
# index of a block in its stack, which scanned blocks do not have. Blocks of
# ResNets have two: the stage, and the index in it.
_STACKS = (
  re.compile(r'block(\d+)/unit(\d+)/.*'),
  re.compile(r'outlooker(?:_(\d+))?/.*'),
  re.compile(
    r'(?:(?:Transformer/)?encoderblock|MixerBlock|block)(?:_(\d+))?/.*'
  ),
  re.compile(r'cls_block(?:_(\d+))?/.*'),
)
# Parameters after the last block. All parameters that match neither are before
# the first block.
_TOP = re.compile(
  r'((Transformer/)?encoder_norm|head|head_dist|aux_head|pre_logits|'
  r'pre_head_layer_norm|norm-pre-head|MAPHead_\d+|lca|pos_layer_embedding)'
  r'(/.*)?'
)


def block_positions(params: Any) -> dict[str, int | np.ndarray]:
  """The position of each parameter, from the input (0) to the head (L + 1).

  Returns:
    {path: position}: 0 for the stem, tokens and position tables, 1 .. L for the
    L blocks in the order of the forward pass, L + 1 for all parameters after
    them. A position is an int, or an int array for a stack of scanned blocks.
  """
  keys = {}  # path -> list of sortable block keys
  for path, leaf in flat_paths(params).items():
    for rank, stack in enumerate(_STACKS):
      match = stack.fullmatch(path)
      if match:
        index = [int(g) for g in match.groups() if g is not None]
        if index:
          keys[path] = [(rank, 0, *index)]
        else:  # scanned blocks follow the unrolled ones of the same stack
          keys[path] = [(rank, 1, i) for i in range(leaf.shape[0])]
        break
  order = sorted({k for ks in keys.values() for k in ks})
  number = {k: i + 1 for i, k in enumerate(order)}
  positions = {}
  for path in flat_paths(params):
    if path in keys:
      position = np.array([number[k] for k in keys[path]])
      stacked = keys[path][0][1] == 1
      positions[path] = position if stacked else int(position[0])
    else:
      positions[path] = len(order) + 1 if _TOP.fullmatch(path) else 0
  return positions


def _layer_factors(
  layer_decay: float, params: Any
) -> dict[str, float | np.ndarray]:
  """{path: layer_decay ** (number of positions before the head)}."""
  positions = block_positions(params)
  last = max((int(np.max(p)) for p in positions.values()), default=0)
  blocks = [p for p in positions.values() if 0 < np.max(p)]
  if not blocks or last < 2:
    raise ValueError(
      f'optim.layer_decay={layer_decay}: no stack of blocks in '
      f'the parameters {_names(flat_paths(params))}. Set it to 1 for this model'
    )
  factors = {}
  for path, leaf in flat_paths(params).items():
    position = positions[path]
    factor = np.power(np.float32(layer_decay), last - position)
    if isinstance(position, np.ndarray):
      factors[path] = factor.astype(np.float32).reshape(
        -1, *(1,) * (leaf.ndim - 1)
      )
    else:
      factors[path] = float(factor)
  return factors


def _names(paths, limit: int = 8) -> str:
  paths = list(paths)
  more = f', ... ({len(paths)} in all)' if len(paths) > limit else ''
  return ', '.join(paths[:limit]) + more


def _matching(pattern: str, key: str, paths) -> list[str]:
  """The paths that a regex matches as a whole; ValueError if none."""
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise ValueError(
      f'{key}: {pattern!r} is not a regular expression: {e}'
    ) from None
  matching = [p for p in paths if regex.fullmatch(p)]
  if not matching:
    word = re.sub(r'[^\w/]+', '', pattern)
    near = (
      [p for p in paths if regex.search(p)]
      or [p for p in paths if word and word.lower() in p.lower()]
      or difflib.get_close_matches(word, paths, n=5, cutoff=0.3)
    )
    hint = f'near it: {_names(near)}' if near else f'there are: {_names(paths)}'
    raise ValueError(
      f'{key}: {pattern!r} matches no parameter (the whole path must match, '
      f"as in 'head/.*'); {hint}"
    )
  return matching


def _group_rates(groups, rates: dict[str, Rate], paths) -> dict[str, Rate]:
  """`rates` with the factors of the first group that matches each path."""
  rates, matched = dict(rates), set()
  for pattern, factors in groups:
    unknown = set(factors) - {'lr', 'decay'}
    if unknown:
      raise ValueError(
        f'optim.groups: {pattern!r} sets {sorted(unknown)}; '
        "allowed: 'lr', 'decay'"
      )
    lr, decay = factors.get('lr', 1.0), factors.get('decay', 1.0)
    if lr < 0 or decay < 0:
      raise ValueError(
        f'optim.groups: {pattern!r} has a negative factor: {dict(factors)}'
      )
    for path in _matching(pattern, 'optim.groups', paths):
      if path not in matched:
        matched.add(path)
        rate = rates[path]
        rates[path] = Rate(rate.lr * lr, rate.decay * decay, frozen=lr == 0)
  return rates


def parameter_rates(cfg: Any, params: Any) -> dict[str, Rate]:
  """The `Rate` of every parameter, from the recipe's `optim` section.

  The factor of the learning rate is that of the first matching group times that
  of the layer. A factor of 0 in a group freezes the parameter.

  Args:
    cfg: the recipe's `optim` section: decay_mask, groups and layer_decay.
    params: the parameters, or their ShapeDtypeStructs.

  Raises:
    ValueError: a pattern matches no parameter, a factor is unknown or negative,
      or every parameter is frozen.
  """
  flat = flat_paths(params)
  rates = {path: Rate() for path in flat}
  if cfg.weight_decay:
    for path in _matching(cfg.decay_mask, 'optim.decay_mask', flat):
      rates[path] = Rate(decay=1.0)
  if cfg.layer_decay != 1:
    for path, factor in _layer_factors(cfg.layer_decay, params).items():
      rates[path] = dataclasses.replace(rates[path], lr=factor)
  rates = _group_rates(cfg.groups, rates, flat)
  if all(r.frozen for r in rates.values()):
    raise ValueError('optim.groups freezes every parameter: nothing is trained')
  return rates
