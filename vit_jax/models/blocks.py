"""Stacks of equal blocks, in a loop or a scan, and LayerScale."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import onednn_products
from vit_jax.models.products import multiply_parameter
from vit_jax.models.tpu_layout import constrain

# The allowed values of `remat`, each with the policy that says which values of
# a block the forward pass keeps; the backward pass computes the others again.
# 'none' keeps what it needs, 'full' nothing, 'dots' the results of matrix
# products, 'dots_no_batch' those of products without batch axes.
_either = jax.checkpoint_policies.save_from_both_policies
REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': _either(
    jax.checkpoint_policies.checkpoint_dots, onednn_products.is_product
  ),
  'dots_no_batch': _either(
    jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    functools.partial(onednn_products.is_product, batched=False),
  ),
}


def check_field(name: str, value: Any, allowed: Sequence[str]) -> None:
  """Raises ValueError, with the allowed values, for any other value."""
  if value not in allowed:
    raise ValueError(f'{name}={value!r}; allowed: {", ".join(allowed)}')


def scale_channels(
  block: nn.Module, name: str, x: jax.Array, initial: float | None
) -> jax.Array:
  """LayerScale (arXiv:2103.17239, eq. 10): one learned factor per channel.

  It is called inside the compact method of a block and creates a parameter (D,)
  of the block.

  Args:
    block: the block.
    name: name of the parameter, such as 'gamma_1'.
    x: the output of a residual branch, (B, T, D).
    initial: initial value of the factors; None returns x as it is.

  Returns:
    (B, T, D).
  """
  if initial is None:
    return x
  gamma = block.param(name, nn.initializers.constant(initial), (x.shape[-1],))
  return multiply_parameter(x, gamma.astype(x.dtype))


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
  """Applies a stack of blocks; to be called inside a compact method.

  Args:
    block: a `functools.partial` of a Linen class with the fields of the blocks.
      Its `__call__(x, rate, train, *extra)` returns x and a tree of
      intermediates; `rate` is the block's drop-path rate.
    x: (B, ..., D).
    rates: drop-path rate of each block; their number is the depth.
    train: True in training. It is a Python bool, because it changes the
      program.
    name: blocks are named `{name}_{i}`, a scanned stack `{name}`.
    remat: a key of REMAT.
    scan: compiles one block and runs it for each layer; the parameters are
      stacked along a leading axis.
    first: number of the first block in the names of blocks; not used by a scan.
    extra: further arguments of every block, after `train`.

  Returns:
    x, and the blocks' intermediates, one tree per block.

  Raises:
    ValueError: unknown `remat`.
  """
  check_field('remat', remat, tuple(REMAT))
  cls, fields = block.func, block.keywords
  if remat != 'none':
    # Positions of the static arguments among (self, x, rate, train). The rate
    # of a scanned block is an entry of an array, so it is not static.
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
