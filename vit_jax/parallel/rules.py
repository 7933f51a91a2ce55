"""Sharding rules: how every parameter is split over the devices of the mesh.

The mesh has three axes. Devices along `data` have copies of the model and
different examples. Devices along `fsdp` also have different examples, but share
the parameters and the optimizer state (arXiv:1910.02054). Devices along
`tensor` share the attention heads and the width of the MLP (arXiv:1909.08053).
Under the preset 'zero' they share them only as they are stored and updated: a
step begins with putting them together (`training/whole_params.py`).

Shardings come from an ordered list of rules (regex over the parameter path,
spec). The first match counts, and a rule must match every parameter.
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

# Under fsdp, the log names parameters with at least this many entries (1 MiB of
# float32) that stay replicated.
LARGE = 2**18

# The spec of a rule is one of four things. A tuple has one mesh axis or None
# for each array axis, aligned at the right, because a scanned stack has one
# more axis at the left. The name of a mesh axis splits the largest array axis
# that the mesh axis divides. A name and a number, 'fsdp:-2', splits that array
# axis if the mesh axis divides it, and else the largest. 'replicated' splits
# nothing.
_TENSOR_RULES = (
  (r'.*/(query|key|value)/kernel', ('fsdp', 'tensor', None)),
  (r'.*/(query|key|value)/bias', ('tensor', None)),
  (r'.*/out/kernel', ('tensor', None, 'fsdp')),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_0/kernel', ('fsdp', 'tensor')),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_0/bias', ('tensor',)),
  (r'.*(MlpBlock_\d+|mlp|channel_mixing)/Dense_1/kernel', ('tensor', 'fsdp')),
)
# Vectors stay replicated under fsdp. They are small, and if one is split, such
# as the bias of the queries, the partitioner splits the activations along with
# it.
_FSDP_RULES = ((r'(.*/)?(bias|scale)', 'replicated'), (r'.*', 'fsdp'))
# Under 'zero', kernels of attention are split by heads. Gathered, one then has
# the memory order of `tpu_layout.kernel_for_heads` without a copy, which takes
# 0.14 ms of each block of L/16 otherwise. Under 'fsdp' nothing gathers a kernel
# before it is used, and the partitioner could split the activations by heads
# along with it.
_HEADS_RULES = (
  (r'.*/(query|key|value)/kernel', 'fsdp:-2'),
  (r'.*/out/kernel', 'fsdp:-3'),
)
RULES = {
  'data': ((r'.*', 'replicated'),),
  'zero': _HEADS_RULES + _FSDP_RULES,
  'fsdp': _FSDP_RULES,
  'fsdp_tensor': _TENSOR_RULES + _FSDP_RULES,
}


def _largest(
  shape: Sequence[int], axis: str, mesh: Mesh, first: int | None = None
) -> P:
  """The spec that splits the largest dimension that a mesh axis divides.

  Args:
    shape: of the array.
    axis: the mesh axis.
    mesh: the mesh.
    first: the dimension to split, counted from the end (-1), if the mesh axis
      divides it.
  """
  size = mesh.shape[axis]
  dims = [i for i, d in enumerate(shape) if d % size == 0 and d >= size]
  if size == 1 or not dims:
    return P()
  best = max(dims, key=lambda i: shape[i])
  if first is not None and len(shape) + first in dims:
    best = len(shape) + first
  return P(*[axis if i == best else None for i in range(best + 1)])


def check_rules(rules: Any) -> None:
  """Raises ValueError for a rule that is wrong for any parameters."""
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
      [_name_and_dimension(spec)[0]]
      if isinstance(spec, str)
      else [a for a in jax.tree.leaves(tuple(spec)) if a is not None]
    )
    for name in names:
      if name not in AXES:
        raise ValueError(
          f'mesh rule {pattern!r} names axis {name!r}; allowed: '
          f'replicated, {", ".join(AXES)}, one of these axes and a number such '
          'as fsdp:-2, or a tuple of axes and None'
        )
      if names.count(name) > 1:
        raise ValueError(f'mesh rule {pattern!r} names axis {name!r} twice')


def _name_and_dimension(spec: str) -> tuple[str, int | None]:
  """'fsdp:-2' as ('fsdp', -2), and 'fsdp' as ('fsdp', None)."""
  name, separator, number = spec.partition(':')
  if not separator:
    return name, None
  if not re.fullmatch(r'-[1-9]', number):
    raise ValueError(
      f'mesh rule with {spec!r}: after the colon comes the array axis to '
      'split, counted from the end (-1 to -9), such as fsdp:-2'
    )
  return name, int(number)


def _spec(
  path: str, shape: Sequence[int], rules, mesh: Mesh, unsplit: list[str]
) -> P:
  """The spec of a parameter; adds it to `unsplit` if it is large but whole."""
  for pattern, spec in rules:
    if not re.fullmatch(pattern, path):
      continue
    if spec == 'replicated':
      return P()
    if isinstance(spec, str):
      axis, first = _name_and_dimension(spec)
      chosen = _largest(shape, axis, mesh, first)
    else:
      spec = tuple(spec)
      if len(spec) > len(shape):
        raise ValueError(
          f'mesh rule {pattern!r} has {len(spec)} axes, but '
          f'{path} has shape {tuple(shape)}'
        )
      spec = (None,) * (len(shape) - len(spec)) + spec
      # A dimension that its mesh axes do not divide is not split.
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
  """The number of devices along one mesh axis or several; 1 for None."""
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
    params: tree of arrays or ShapeDtypeStructs.
    mesh: the mesh of the run.
    preset: key of RULES.
    rules: (regex over the parameter path, spec), tried before the preset's.

  Raises:
    ValueError: a rule is wrong, or no rule matches a parameter.
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

  The path of a moment or an average ends with the path of its parameter, and it
  is split like the parameter. All other leaves are replicated.

  Args:
    state: TrainState of arrays or ShapeDtypeStructs.
    mesh: the mesh of the run.
    preset: key of RULES.
    rules: see `param_specs`.
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
      return NamedSharding(mesh, spec)
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(one, state)
