"""Stacks of blocks: loop, scan, rematerialization, drop path, layer scale."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.tpu_layout import constrain

# The allowed values of `remat`: what the forward pass may save for the backward
# pass, which computes the rest again. 'full' saves nothing inside of a block.
REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.checkpoint_dots,
  'dots_no_batch': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def check_field(name: str, value: Any, allowed: Sequence[str]) -> None:
  """ValueError that names the field and the allowed values."""
  if value not in allowed:
    raise ValueError(f'{name}={value!r}; allowed: {", ".join(allowed)}')


def scale_channels(
  block: nn.Module, name: str, x: jax.Array, initial: float | None
) -> jax.Array:
  """LayerScale (arXiv:2103.17239, eq. 10): one learned factor per channel.

  Called inside the compact method of a block, which gets the parameter `name`
  (D,).

  Args:
    block: the module that owns the parameter.
    name: of the parameter, such as 'gamma_1'.
    x: the output of a residual branch, (B, T, D).
    initial: initial value of the factors; None for no scaling.

  Returns:
    (B, T, D).
  """
  if initial is None:
    return x
  gamma = block.param(name, nn.initializers.constant(initial), (x.shape[-1],))
  return x * gamma.astype(x.dtype).reshape(1, 1, -1)


def run_blocks(
  block: functools.partial,
  x: Any,
  rates: Sequence[float],
  train: bool,
  *,
  name: str,
  remat: str = 'none',
  scan: bool = False,
  first: int = 0,
  extra: tuple = (),
) -> tuple[Any, list[Any]]:
  """Applies a stack of blocks. Called inside a compact method.

  Args:
    block: a `functools.partial` of a Linen class with the blocks' fields. Its
      `__call__(x, rate, train, *extra)` returns x and a tree of intermediates;
      `rate` is the block's drop-path rate.
    x: (B, ..., D).
    rates: drop-path rate per block; their number is the depth.
    train: whether this is training; static.
    name: blocks are named `{name}_{i}`, a scanned stack `{name}`.
    remat: a key of REMAT.
    scan: compiles one block and runs it for each layer; the parameters are
      stacked along a leading axis.
    first: index of the first block in the names, without `scan`.
    extra: further arguments of every block, after `train`.

  Returns:
    x, and the blocks' intermediates, one tree per block.

  Raises:
    ValueError: unknown `remat`.
  """
  check_field('remat', remat, tuple(REMAT))
  cls, fields = block.func, block.keywords
  if remat != 'none':
    # Static arguments are counted with self: (self, x, rate, train). A scanned
    # block has its rate from an array.
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
      x = constrain(x)
      auxes.append(aux)
    return x, auxes
  # If all rates are zero, the blocks get the constant 0.0, and no drop path is
  # compiled.
  per_layer = any(rates)
  in_axes: Any = (0 if per_layer else nn.broadcast, nn.broadcast)
  in_axes += (nn.broadcast,) * len(extra)
  scanned: Callable[..., Any] = nn.scan(
    cls,
    variable_axes={'params': 0, 'batch_stats': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=in_axes,
    length=len(rates),
  )
  rate = jnp.asarray(rates, jnp.float32) if per_layer else 0.0
  x, auxes = scanned(**fields, name=name)(x, rate, train, *extra)
  return constrain(x), [
    jax.tree.map(lambda a, i=i: a[i], auxes) for i in range(len(rates))
  ]
