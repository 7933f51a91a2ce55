"""Area attention with a gradient rule of its own, in jnp or as a kernel.

It serves mean keys with sum or mean values, without top-k, dropout and masks.
There are two programs, both built from the functions for one head in `windows`:
one in jnp for all heads, and the Pallas kernel in `kernel`, which keeps the
matrices of a head on the chip, so that none is written to HBM.
docs/area_attention.md has the speed of both.

B batch, T queries, S memory items, H heads, K and V head widths.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models import tpu_layout
from vit_jax.models.area import kernel, windows
from vit_jax.models.area.areas import Areas
from vit_jax.models.platform import target_platform

# The jnp program. On a CPU it computes one head after the other (`by_head`),
# because the matrices of all heads do not fit into the caches.


def _heads_first(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 2, 0)


def _heads_last(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 0, 2)


def _for_all_heads(
  fn: Callable[..., Any], by_head: bool, args: Sequence[jax.Array]
) -> Any:
  return jax.lax.map(lambda a: fn(*a), tuple(args)) if by_head else fn(*args)


def _jnp_forward(q, k, v, bias, *, areas, value_mode, by_head):
  fn = lambda q, k, v: windows.forward(q, k, v, bias, areas, value_mode)
  k, v = [windows.pad_memory(x, areas) for x in (k, v)]
  out, normalizer = _for_all_heads(
    fn, by_head, [_heads_first(x) for x in (q, k, v)]
  )
  return _heads_last(out), jnp.moveaxis(normalizer[:, :, 0], 0, 1)


def _jnp_backward(q, k, v, bias, normalizer, g, *, areas, value_mode, by_head):
  fn = lambda q, k, v, normalizer, g: windows.backward(
    q, k, v, bias, normalizer, g, areas, value_mode
  )
  k, v = [windows.pad_memory(x, areas) for x in (k, v)]
  normalizer = jnp.moveaxis(normalizer, 1, 0)[:, :, None]
  q, k, v, g = [_heads_first(x) for x in (q, k, v, g)]
  grads = _for_all_heads(fn, by_head, (q, k, v, normalizer, g))
  dq, dk, dv = [_heads_last(x) for x in grads]
  return dq, windows.unpad_memory(dk, areas), windows.unpad_memory(dv, areas)


# Choosing the program.


def _kernel_fits(q: jax.Array, k: jax.Array) -> bool:
  """Whether the kernel works for these shapes and is faster, on TPUs."""
  # A program for any batch size is exported with a symbol in its place.
  return (
    isinstance(q.shape[0], int)
    and q.shape[1] * k.shape[1] <= kernel.MAX_ENTRIES
    and tpu_layout.can_split(q.shape[0], q.shape[2])
  )


def _run(
  program: str,
  jnp_program: Callable[..., Any],
  kernel_program: Callable[..., Any],
  ranks: Sequence[int],
  args: Sequence[jax.Array],
) -> Any:
  """Runs the program that `fused` describes under its argument `program`.

  Args:
    program: 'jnp', 'kernel' or 'auto'.
    jnp_program, kernel_program: the two programs, of the same arguments.
    ranks: of the arrays that they return.
    args: their arguments; the first two are q and k.
  """
  platform = target_platform()
  on_tpu = platform == 'tpu'
  if program == 'kernel' and platform != 'any':
    run = functools.partial(kernel_program, interpret=not on_tpu)
    return tpu_layout.on_each_device(run, ranks)(*args)
  if program == 'auto' and on_tpu and _kernel_fits(args[0], args[1]):
    return tpu_layout.on_each_device(kernel_program, ranks)(*args)
  return jnp_program(*args, by_head=platform == 'cpu')


# The function with its gradient rule.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def fused(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  areas: Areas,
  value_mode: str = 'sum',
  program: str = 'auto',
) -> jax.Array:
  """Area attention with mean keys and sum or mean values.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    areas: the areas of the S items.
    value_mode: 'sum' or 'mean'.
    program: 'jnp'; 'kernel', which is interpreted, and slow, on devices other
      than TPUs; or 'auto', which takes the kernel on TPUs where it is faster.
      Under a mesh whose axes have the names of `vit_jax.parallel.mesh`, each
      device runs the kernel on its own examples and heads.

  Returns:
    (B, T, H, V). For the backward pass only q, k, v and one float32 number for
    each query and head are kept in memory.
  """
  return _fused_fwd(q, k, v, areas, value_mode, program)[0]


def _fused_fwd(q, k, v, areas, value_mode, program):
  fixed = dict(areas=areas, value_mode=value_mode)
  out, normalizer = _run(
    program,
    functools.partial(_jnp_forward, **fixed),
    functools.partial(kernel.forward, **fixed),
    (4, 3),
    (q, k, v, windows.gap_bias(areas)),
  )
  return out, (q, k, v, normalizer)


def _fused_bwd(areas, value_mode, program, residuals, g):
  # Without the barrier, the compiler would keep the logits of the forward pass
  # instead of computing them again.
  (q, k, v, normalizer), g = jax.lax.optimization_barrier((residuals, g))
  fixed = dict(areas=areas, value_mode=value_mode)
  return _run(
    program,
    functools.partial(_jnp_backward, **fixed),
    functools.partial(kernel.backward, **fixed),
    (4, 4, 4),
    (q, k, v, windows.gap_bias(areas), normalizer, g),
  )


fused.defvjp(_fused_fwd, _fused_bwd)


def item_weights(
  q: jax.Array, k: jax.Array, areas: Areas, value_mode: str = 'sum'
) -> jax.Array:
  """The weights of the items' values in the output of `fused`.

  Args:
    q, k, areas, value_mode: as in `fused`.

  Returns:
    float32 (B, H, T, S).
  """
  q, k = jnp.moveaxis(q, 2, 1), jnp.moveaxis(windows.pad_memory(k, areas), 2, 1)
  weights, _ = windows.weights_of_items(
    windows.logits(q, k, windows.gap_bias(areas)), areas, value_mode
  )
  items = windows.unpad_memory(jnp.moveaxis(weights, 2, 1), areas)
  return jnp.einsum('bsht->bhts', items)
