"""Mesh and shardings: which device holds which part of which array.

The mesh has three axes. `data`: copies of the model, each with a part of the
batch. `fsdp`: a part of the batch as well, and parameters and optimizer state
split among them (arXiv:1910.02054). `tensor`: attention heads and MLP width
split (arXiv:1909.08053). Shardings come from an ordered list of rules
(regex over the parameter path, spec): the first match wins, and every
parameter must be covered.
"""

import math
import re

from absl import logging
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.parallel.mesh import AXES

# Parameters with at least this many entries should not stay replicated under
# fsdp: 256 Ki float32 entries are 1 MiB.
LARGE = 2**18

# The spec of a rule is a tuple with one entry per array axis, aligned at the
# right (a scanned stack has one more axis at the left), or the name of a mesh
# axis: "split the largest axis that divides", or 'replicated'.
_TENSOR_RULES = (
  (r'.*/(query|key|value)/kernel', ('fsdp', 'tensor', None)),
  (r'.*/(query|key|value)/bias', ('tensor', None)),
  (r'.*/out/kernel', ('tensor', None, 'fsdp')),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_0/kernel', ('fsdp', 'tensor')),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_0/bias', ('tensor',)),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_1/kernel', ('tensor', 'fsdp')),
)
# Vectors stay whole under fsdp: they are small, and a split bias of the
# queries, say, makes the partitioner split the activations along it.
_FSDP_RULES = ((r'(.*/)?(bias|scale)', 'replicated'), (r'.*', 'fsdp'))
RULES = {
  'data': ((r'.*', 'replicated'),),
  'zero': ((r'.*', 'replicated'),),
  'fsdp': _FSDP_RULES,
  'fsdp_tensor': _TENSOR_RULES + _FSDP_RULES,
}


def _largest(shape, axis: str, mesh: Mesh, used=()) -> P:
  """Splits the largest axis that `mesh.shape[axis]` divides."""
  size = mesh.shape[axis]
  dims = [
    i
    for i, d in enumerate(shape)
    if d % size == 0 and d >= size and i not in used
  ]
  if size == 1 or not dims:
    return P()
  best = max(dims, key=lambda i: shape[i])
  return P(*[axis if i == best else None for i in range(best + 1)])


def _check_rules(rules) -> None:
  """ValueError for a rule that means nothing, whatever the parameters are."""
  for rule in rules:
    if len(rule) != 2 or not isinstance(rule[0], str):
      raise ValueError(f'mesh rule {rule!r} is not (regex, spec)')
    pattern, spec = rule
    try:
      re.compile(pattern)
    except re.error as e:
      raise ValueError(
        f'mesh rule {pattern!r} is not a regular expression: {e}'
      ) from e
    if spec == 'replicated':
      continue
    names = (
      [spec]
      if isinstance(spec, str)
      else [a for a in jax.tree.leaves(tuple(spec)) if a is not None]
    )
    for name in names:
      if name not in AXES:
        raise ValueError(
          f'mesh rule {pattern!r} names axis {name!r}; allowed: '
          f'replicated, {", ".join(AXES)}, or a tuple of axes and None'
        )
      if names.count(name) > 1:
        raise ValueError(f'mesh rule {pattern!r} names axis {name!r} twice')


def _spec(path: str, shape, rules, mesh: Mesh, lost: list[str]) -> P:
  for pattern, spec in rules:
    if not re.fullmatch(pattern, path):
      continue
    if spec == 'replicated':
      return P()
    if isinstance(spec, str):
      chosen = _largest(shape, spec, mesh)
    else:
      spec = tuple(spec)
      if len(spec) > len(shape):
        raise ValueError(
          f'mesh rule {pattern!r} has {len(spec)} axes, but '
          f'{path} has shape {tuple(shape)}'
        )
      spec = (None,) * (len(shape) - len(spec)) + spec
      # An axis that does not divide stays whole.
      chosen = P(
        *[
          a
          if a is None
          or d
          % math.prod(mesh.shape[x] for x in ([a] if isinstance(a, str) else a))
          == 0
          else None
          for a, d in zip(spec, shape, strict=False)
        ]
      )
    split = any(
      a is not None and mesh.shape[a] > 1
      for a in jax.tree.leaves(tuple(chosen))
    )
    if (
      not split
      and math.prod(shape) >= LARGE
      and math.prod(mesh.shape[a] for a in ('fsdp', 'tensor')) > 1
    ):
      lost.append(f'{path} {tuple(shape)}')
    return chosen
  raise ValueError(
    f'no mesh rule covers parameter {path}; '
    'end mesh.rules with (".*", "replicated")'
  )


def param_specs(params, mesh: Mesh, preset: str = 'data', rules=()):
  """PartitionSpec of every parameter: the config's rules, then the preset's.

  Large parameters that no axis divides stay replicated, and are logged.
  """
  lost = []
  _check_rules(rules)
  rules = tuple(map(tuple, rules)) + RULES[preset]
  specs = jax.tree_util.tree_map_with_path(
    lambda path, x: _spec(
      jax.tree_util.keystr(path, simple=True, separator='/'),
      x.shape,
      rules,
      mesh,
      lost,
    ),
    params,
  )
  if lost:
    logging.warning(
      'large parameters left replicated (no axis divides): %s', '; '.join(lost)
    )
  return specs


def state_shardings(state, mesh: Mesh, preset: str = 'data', rules=()):
  """NamedSharding of every leaf of a TrainState (abstract or concrete).

  Optimizer state and averages that mirror a parameter (same path ending and
  shape) are split like it; under 'zero' they are split over `data` although
  the parameters are not. Everything else is replicated.
  """
  specs = {
    jax.tree_util.keystr(p, simple=True, separator='/'): (s, x.shape)
    for (p, s), x in zip(
      jax.tree_util.tree_leaves_with_path(
        param_specs(state.params, mesh, preset, rules),
        is_leaf=lambda x: isinstance(x, P),
      ),
      jax.tree.leaves(state.params),
      strict=False,
    )
  }

  def one(path, x):
    parts = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    if parts[0] == 'batch_stats' or not hasattr(x, 'shape'):
      return NamedSharding(mesh, P())
    for i in range(1, len(parts)):
      spec, shape = specs.get('/'.join(parts[i:]), (None, None))
      if spec is None:
        continue
      if shape != x.shape:  # factored moments: rows and columns
        spec = _largest(x.shape, 'fsdp', mesh)
      if preset == 'zero' and parts[0] != 'params':
        spec = _largest(x.shape, 'data', mesh)
      return NamedSharding(mesh, spec)
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(one, state)


def update_specs(state, shardings, preset: str):
  """PartitionSpec of every gradient where the optimizer meets it.

  As its parameter; under 'zero' split over `data`, as the optimizer state is.
  `shardings` are the `state_shardings` of the TrainState.
  """
  return jax.tree.map(
    lambda x, s: (
      _largest(x.shape, 'data', s.mesh) if preset == 'zero' else s.spec
    ),
    state.params,
    shardings.params,
  )


def describe(tree, shardings) -> str:
  """A table: path, shape, entries, and how each parameter is split."""
  rows = [('parameter', 'shape', 'entries', 'split')]
  for (path, x), s in zip(
    jax.tree_util.tree_leaves_with_path(tree),
    jax.tree.leaves(shardings),
    strict=False,
  ):
    rows.append(
      (
        jax.tree_util.keystr(path, simple=True, separator='/'),
        'x'.join(map(str, x.shape)) or '-',
        f'{math.prod(x.shape):,}',
        ', '.join(str(a) for a in s.spec) or 'replicated',
      )
    )
  total = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  rows.append(('total', '', f'{total:,}', ''))
  widths = [max(len(r[i]) for r in rows) for i in range(4)]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(r, widths, strict=False)).rstrip()
    for r in rows
  )
