"""Stacks of transformer blocks: loop, scan, rematerialisation."""

from collections.abc import Callable, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.tpu_layout import pin

REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.checkpoint_dots,
  'dots_no_batch': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def run_blocks(
  block: Callable[..., nn.Module],
  x,
  rates: Sequence[float],
  train: bool,
  *,
  name: str,
  remat: str = 'none',
  scan: bool = False,
  first: int = 0,
  extra: tuple = (),
):
  """Applies a stack of blocks; called inside a compact `__call__`.

  Args:
    block: a partial of a Module class whose `__call__(x, rate, train)`
      returns (x, aux); `rate` is its drop-path rate.
    x: (B, ..., D).
    rates: drop-path rate per block; their number is the depth.
    train: static.
    name: blocks are named `{name}_{i}`; a scanned stack `{name}`.
    remat: a key of REMAT; what the backward pass may recompute.
    scan: one compiled block, parameters stacked along a leading axis.
    first: index of the first block in the unrolled names.
    extra: further arguments of every block, after `train`.

  Returns:
    x and the list of the blocks' aux trees.
  """
  if remat not in REMAT:
    raise ValueError(f'remat={remat!r}; allowed: {", ".join(REMAT)}')
  cls, fields = block.func, block.keywords
  if remat != 'none':
    # Static arguments are counted with self: (self, x, rate, train).
    cls = nn.remat(
      cls,
      policy=REMAT[remat],
      prevent_cse=not scan,
      static_argnums=(3,) if scan else (2, 3),
    )
  if not scan:
    auxes = []
    for i, rate in enumerate(rates, start=first):
      x, aux = cls(**fields, name=f'{name}_{i}')(x, float(rate), train, *extra)
      x = pin(x)
      auxes.append(aux)
    return x, auxes
  per_layer = any(rates)  # else a constant zero, and no drop path is compiled
  scanned = nn.scan(
    cls,
    variable_axes={'params': 0, 'batch_stats': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=(0 if per_layer else nn.broadcast, nn.broadcast)
    + (nn.broadcast,) * len(extra),
    length=len(rates),
  )
  rate = jnp.asarray(rates, jnp.float32) if per_layer else 0.0
  x, auxes = scanned(**fields, name=name)(x, rate, train, *extra)
  return pin(x), [
    jax.tree.map(lambda a, i=i: a[i], auxes) for i in range(len(rates))
  ]
