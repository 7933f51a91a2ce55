"""Area attention as a Pallas kernel for TPUs, forward and backward.

A step of the kernel's grid loads one or two heads of one example and keeps
their matrices of logits on the chip. The tokens are the last axis of its
operands, as the model lays them out in memory, so the operands are not copied.
The kernel computes in float32: TPU v3 requires it, and it takes no more time.

B batch, T queries, S memory items, N items of the padded memory (`windows`),
H heads, K and V head widths.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from vit_jax.models.area import windows
from vit_jax.models.area.areas import Areas

# The kernel is chosen for at most so many entries T x S of a matrix of logits.
# An image of 224 px with patches of 16 or 14 px has fewer. For more, the code
# of the kernel becomes large and its advantage small.
MAX_ENTRIES = 320 * 320


def heads_per_step(heads: int) -> int:
  """Number of heads that one step of the grid computes, of `heads` in all.

  With two, the loads for one head overlap with the computation of the other.
  More would make the code of the kernel longer.
  """
  return 2 if heads % 2 == 0 else 1


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array,
  *,
  areas: Areas,
  value_mode: str,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Area attention with mean keys and sum or mean values.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    bias: `windows.gap_bias(areas)`.
    areas: the areas of the S items.
    value_mode: 'sum' or 'mean'.
    interpret: runs the kernel without a TPU, which is slow.

  Returns:
    The output (B, T, H, V) and the log normalizer (B, H, T).
  """
  q, k, v = [_tokens_last(x) for x in (q, k, v)]
  batch, heads, _, queries = q.shape
  outs = [
    jax.ShapeDtypeStruct((*v.shape[:3], queries), v.dtype),
    jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
  ]
  kernel = functools.partial(
    _forward_kernel, areas=areas, value_mode=value_mode
  )
  out, normalizer = _call(kernel, [q, k, v, bias], outs, interpret)
  return _tokens_second(out), normalizer[:, :, 0]


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array,
  normalizer: jax.Array,
  g: jax.Array,
  *,
  areas: Areas,
  value_mode: str,
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """Gradients of q, k and v.

  Args:
    q, k, v, bias, areas, value_mode, interpret: as in `forward`.
    normalizer: the log normalizer that `forward` returned, (B, H, T).
    g: gradient of the output, (B, T, H, V).

  Returns:
    (B, T, H, K), (B, S, H, K), (B, S, H, V).
  """
  q, k, v, g = [_tokens_last(x) for x in (q, k, v, g)]
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  kernel = functools.partial(
    _backward_kernel, areas=areas, value_mode=value_mode
  )
  grads = _call(
    kernel, [q, k, v, bias, normalizer[:, :, None], g], outs, interpret
  )
  return tuple(_tokens_second(x) for x in grads)


def _tokens_last(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 1, -1)  # (B, H, K, T)


def _tokens_second(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, -1, 1)  # (B, T, H, K)


def _forward_kernel(q, k, v, bias, out, normalizer, *, areas, value_mode):
  for h in range(q.shape[1]):
    head = lambda x, h=h: x[0, h].astype(jnp.float32)
    y, log = windows.forward(
      head(q),
      windows.pad_memory(head(k), areas),
      windows.pad_memory(head(v), areas),
      bias[...],
      areas,
      value_mode,
      tokens_last=True,
    )
    out[0, h] = y.astype(out.dtype)
    normalizer[0, h] = log


def _backward_kernel(
  q, k, v, bias, normalizer, g, dq, dk, dv, *, areas, value_mode
):
  for h in range(q.shape[1]):
    head = lambda x, h=h: x[0, h].astype(jnp.float32)
    grads = windows.backward(
      head(q),
      windows.pad_memory(head(k), areas),
      windows.pad_memory(head(v), areas),
      bias[...],
      normalizer[0, h],
      head(g),
      areas,
      value_mode,
      tokens_last=True,
    )
    dq[0, h] = grads[0].astype(dq.dtype)
    dk[0, h] = windows.unpad_memory(grads[1], areas).astype(dk.dtype)
    dv[0, h] = windows.unpad_memory(grads[2], areas).astype(dv.dtype)


def _call(
  kernel: Callable[..., None],
  args: Sequence[jax.Array],
  outs: Sequence[jax.ShapeDtypeStruct],
  interpret: bool,
) -> Any:
  """Calls a kernel on a grid of examples and groups of heads.

  Args:
    kernel: a function of references to one block of each operand and result.
    args: operands (B, H, ...), of which each step gets its example and heads,
      and the bias (N, 1), of which each step gets all.
    outs: shapes and dtypes of the results, (B, H, ...).
    interpret: runs the kernel without a TPU.
  """
  heads = args[0].shape[1]
  group = heads_per_step(heads)

  def spec(x):
    if x.ndim == 2:
      return pl.BlockSpec(x.shape, lambda i, j: (0, 0))
    return pl.BlockSpec((1, group, *x.shape[2:]), lambda i, j: (i, j, 0, 0))

  return pl.pallas_call(
    kernel,
    grid=(args[0].shape[0], heads // group),
    in_specs=[spec(x) for x in args],
    out_specs=[spec(x) for x in outs],
    out_shape=outs,
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel')
    ),
  )(*args)
