"""Sharding rules: how every parameter is split over the devices of the mesh.

The mesh has three axes. Along `data`, devices hold copies of the model and
different examples. Along `fsdp` they hold different examples as well, and the
parameters and the optimizer state are split among them (arXiv:1910.02054).
Along `tensor`, attention heads and the width of the MLP are split
(arXiv:1909.08053). Shardings come from an ordered list of rules (regex over the
parameter path, spec): the first match wins, and every parameter must be
covered.
"""

from collections.abc import Sequence
import math
import re
from typing import Any

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


def _largest(shape: Sequence[int], axis: str, mesh: Mesh) -> P:
  """Splits the largest dimension that the mesh axis divides, if any does."""
  size = mesh.shape[axis]
  dims = [i for i, d in enumerate(shape) if d % size == 0 and d >= size]
  if size == 1 or not dims:
    return P()
  best = max(dims, key=lambda i: shape[i])
  return P(*[axis if i == best else None for i in range(best + 1)])


def check_rules(rules: Any) -> None:
  """ValueError for a rule that no parameters can satisfy."""
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


def _spec(
  path: str, shape: Sequence[int], rules, mesh: Mesh, unsplit: list[str]
) -> P:
  """The spec of one parameter; a large one that stays whole is in `unsplit`."""
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
      # A dimension that the devices of its mesh axes do not divide stays whole.
      chosen = P(
        *[
          axes if d % _devices(axes, mesh) == 0 else None
          for axes, d in zip(spec, shape, strict=True)
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
      unsplit.append(f'{path} {tuple(shape)}')
    return chosen
  raise ValueError(
    f'no mesh rule covers parameter {path}; '
    'end mesh.rules with (".*", "replicated")'
  )


def _devices(axes: str | Sequence[str] | None, mesh: Mesh) -> int:
  """Devices along one mesh axis or several; 1 for None."""
  names = [axes] if isinstance(axes, str) else axes or []
  return math.prod(mesh.shape[name] for name in names)


def param_specs(
  params: Any,
  mesh: Mesh,
  preset: str = 'data',
  rules: Sequence[tuple[str, Any]] = (),
) -> Any:
  """PartitionSpec of every parameter: the recipe's rules, then the preset's.

  Large parameters that no mesh axis divides stay replicated and are named in
  the log.

  Args:
    params: tree of arrays or shapes.
    mesh: of the run.
    preset: key of RULES.
    rules: (regex over the parameter path, spec) that come before the preset's.

  Raises:
    ValueError: a rule that is wrong, or a parameter that no rule covers.
  """
  unsplit: list[str] = []
  check_rules(rules)
  rules = tuple(map(tuple, rules)) + RULES[preset]
  specs = jax.tree_util.tree_map_with_path(
    lambda path, x: _spec(
      jax.tree_util.keystr(path, simple=True, separator='/'),
      x.shape,
      rules,
      mesh,
      unsplit,
    ),
    params,
  )
  if unsplit:
    logging.warning(
      'large parameters left replicated (no axis divides): %s',
      '; '.join(unsplit),
    )
  return specs


def state_shardings(
  state: Any,
  mesh: Mesh,
  preset: str = 'data',
  rules: Sequence[tuple[str, Any]] = (),
) -> Any:
  """NamedSharding of every leaf of a TrainState (abstract or concrete).

  Moments and averages of a parameter, whose path ends with the parameter's, are
  split as it is. Under 'zero' they are split over `data`, although the
  parameters are not. Everything else is replicated.
  """
  specs = {
    jax.tree_util.keystr(p, simple=True, separator='/'): (s, x.shape)
    for (p, s), x in zip(
      jax.tree_util.tree_leaves_with_path(
        param_specs(state.params, mesh, preset, rules),
        is_leaf=lambda x: isinstance(x, P),
      ),
      jax.tree.leaves(state.params),
      strict=True,
    )
  }

  def one(path, x):
    names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    if names[0] == 'batch_stats' or not hasattr(x, 'shape'):
      return NamedSharding(mesh, P())
    for i in range(1, len(names)):
      spec, shape = specs.get('/'.join(names[i:]), (None, None))
      if spec is None:
        continue
      if shape != x.shape:  # Adafactor's moments of rows and columns
        spec = _largest(x.shape, 'fsdp', mesh)
      if preset == 'zero' and names[0] != 'params':
        spec = _largest(x.shape, 'data', mesh)
      return NamedSharding(mesh, spec)
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(one, state)


def update_specs(state: Any, shardings: Any, preset: str) -> Any:
  """PartitionSpec of every gradient when the optimizer reads it.

  It is that of the parameter. Under 'zero' it is split over `data`, as the
  optimizer state is.

  Args:
    state: TrainState.
    shardings: its `state_shardings`.
    preset: key of RULES.
  """
  return jax.tree.map(
    lambda x, s: (
      _largest(x.shape, 'data', s.mesh) if preset == 'zero' else s.spec
    ),
    state.params,
    shardings.params,
  )
