"""Parameters that are stored in parts, put together for a step.

Under `mesh.preset=zero` each device along `fsdp` stores a part of every kernel,
and updates that part only (arXiv:1910.02054, stage 1). The step itself needs
whole kernels. They are put together once, at its start, in the type that the
model computes in: in bfloat16 that is half the bytes of float32.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.models.compute_weights import converted_weights


def whole_params(
  loss: Callable[[Any], jax.Array], params: Any, shardings: Any
) -> Any:
  """The parameters as a step computes with them.

  Args:
    loss: parameters -> loss, to see which of them are only converted to a
      smaller type.
    params: tree of arrays as they are stored.
    shardings: the NamedSharding of each.

  Returns:
    The tree with those parameters whole that are split along `fsdp`. Those of
    them that `loss` only converts to a smaller type are converted, which leaves
    the loss as it is; the gradient by one of them has its type.
  """
  if all(_without_fsdp(s) == s for s in jax.tree.leaves(shardings)):
    return params
  converted = converted_weights(loss, params)

  def one(stored, x, sharding):
    whole = _without_fsdp(sharding)
    if whole == sharding:
      return stored
    # The first constraint keeps the conversion before the exchange.
    x = jax.lax.with_sharding_constraint(x, sharding)
    return jax.lax.with_sharding_constraint(x, whole)

  return jax.tree.map(one, params, converted, shardings)


def whole_arrays(tree: Any) -> Any:
  """Arrays with the same values, none of them split along `fsdp`."""
  shardings = jax.tree.map(lambda x: _without_fsdp(x.sharding), tree)
  if all(
    x.sharding == s
    for x, s in zip(
      jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
    )
  ):
    return tree
  return jax.jit(lambda x: x, out_shardings=shardings)(tree)


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
  """The same sharding, but whole along `fsdp`."""
  if sharding.mesh.shape['fsdp'] == 1:
    return sharding

  def without(axes):
    names = [axes] if isinstance(axes, str) else axes or []
    names = tuple(name for name in names if name != 'fsdp')
    return names[0] if len(names) == 1 else names or None

  return NamedSharding(sharding.mesh, P(*map(without, sharding.spec)))
