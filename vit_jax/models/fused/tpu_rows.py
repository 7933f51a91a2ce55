"""Attention as a Pallas kernel for TPUs, with a row in memory for each token.

The kernel of `fused.tpu` reads tokens that are innermost in memory. There, 197
tokens are stored as 256, the projections before and after it compute as many,
and heads of width 80 make the gradients of their kernels slow. This one reads
(B, T, H K) as a plain matrix product writes it: 197 tokens are stored as 200,
and the heads of H/14 are 1,280 columns. It transposes its operands on the chip
and computes as `fused.tpu` does. It takes bfloat16, and heads of which a few
fill the 128 lanes of a TPU exactly, such as 2 of width 64 or 8 of width 80;
other operands take the kernel of `fused.tpu`.

B batch, T queries, S keys, H heads, K head width. W = H K.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from vit_jax.models import tpu_layout
from vit_jax.models.fused import tpu

_LANES = 128
# Most numbers of each operand that a step loads (256 tokens of 8 heads of width
# 80); more do not fit into the memory of a core.
_MOST_LOADED = 640 * 256
# A logit whose exponential is zero.
_NOTHING = -1e30


def fits(q: Any, k: Any, v: Any) -> bool:
  """Whether the kernel takes these operands and is faster than `fused.tpu`.

  Args:
    q, k, v: arrays (B, T, H, K), (B, S, H, K), (B, S, H, V), or their shapes.
  """
  heads, width = q.shape[2:]
  return (
    tpu.fits(q, k, v)
    and q.dtype == jnp.bfloat16
    and v.shape[3] == width
    and width % 8 == 0
    and _heads_of_a_step(
      tpu_layout.heads_of_a_device(heads), width, q.shape[1], k.shape[1]
    )
    > 0
  )


def _heads_of_a_step(heads: int, width: int, queries: int, keys: int) -> int:
  """How many heads a step loads; 0 if none.

  They fill all lanes of their tiles. There are up to four if all of them can be
  computed together, and otherwise as few as possible.
  """
  tokens = _stored(max(queries, keys))
  counts = [
    n
    for n in range(1, heads + 1)
    if heads % n == 0
    and n * width % _LANES == 0
    and n * width * tokens <= _MOST_LOADED
  ]
  together = tpu.heads_together(heads, _stored(queries), _stored(keys))
  return max(
    (n for n in counts if n <= together), default=min(counts, default=0)
  )


def _stored(tokens: int) -> int:
  """Number of rows that a step loads: a multiple of those of a tile."""
  return math.ceil(tokens / tpu.TILE_ROWS) * tpu.TILE_ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False
) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, K), bfloat16.
    interpret: runs the kernel without a TPU, which is slow.

  Returns:
    (B, T, H, K).
  """
  return _forward(q, k, v, interpret)[0]


def _forward(q, k, v, interpret):
  run = functools.partial(_forward_call, interpret=interpret)
  out, normalizer = tpu_layout.on_each_device(run, (4, 3))(q, k, v)
  return out, (q, k, v, out, normalizer)


def _backward(interpret, kept, g):
  run = functools.partial(_backward_call, interpret=interpret)
  return tpu_layout.on_each_device(run, (4, 4, 4))(*kept, g)


attend.defvjp(_forward, _backward)


def _forward_call(q, k, v, *, interpret):
  batch, queries, heads, _ = q.shape
  outs = (
    jax.ShapeDtypeStruct(q.shape, q.dtype),
    jax.ShapeDtypeStruct((batch, heads, _stored(queries)), jnp.float32),
  )
  return _call(tpu.forward_kernel, (q, k, v), outs, 2, interpret)


def _backward_call(q, k, v, out, normalizer, g, *, interpret):
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  operands = (q, k, v, out, normalizer, g)
  return _call(tpu.backward_kernel, operands, outs, 5, interpret)


def _fill(x: jax.Array, tokens: int, value: float) -> jax.Array:
  """Sets the rows behind the last token, which have the order of `_load`."""
  halves = []
  for i, half in enumerate(jnp.split(x, 2)):
    count = (tokens + 1 - i) // 2
    first = count // 8 * 8
    if count < half.shape[0]:
      last = half[first:]
      row = first + jax.lax.broadcasted_iota(jnp.int32, last.shape, 0)
      last = jnp.where(row < count, last, value)
      half = jnp.concatenate([half[:first], last]) if first else last
    halves.append(half)
  return jnp.concatenate(halves)


def _load(ref: Any, tokens: int, width: int) -> list[jax.Array]:
  """The features (K, tokens) of each head as float32.

  The even tokens come before the odd ones, which changes no sum over tokens.
  The tokens behind the last one are zero; what the memory has there is not
  defined.
  """
  columns = _fill(tpu.rows_apart(ref[0]), tokens, 0.0).T
  return jnp.split(columns, columns.shape[0] // width)


def _store(ref: Any, xs: Sequence[jax.Array], *, interpret: bool) -> None:
  """Writes features whose tokens have the order of `_load`."""
  ref[0] = tpu.rows_joined(jnp.concatenate(xs).T, interpret)


def _call(
  kernel: Callable[..., None],
  operands: Sequence[jax.Array],
  outs: Sequence[jax.ShapeDtypeStruct],
  products: int,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """Calls a kernel on a grid of examples and groups of heads.

  Args:
    kernel: a function of references to one block of each operand and result.
    operands: (B, T, H, K) or (B, H, T); the first is q, the second k.
    outs: shapes and dtypes of the results, likewise.
    products: number of matrix products of each head.
    interpret: runs the kernel without a TPU.

  Returns:
    The results.
  """
  batch, queries, heads, width = operands[0].shape
  keys = operands[1].shape[1]
  group = _heads_of_a_step(heads, width, queries, keys)
  memory = tpu.Memory(
    queries=functools.partial(_load, tokens=queries, width=width),
    keys=functools.partial(_load, tokens=keys, width=width),
    without_padding=lambda logits: _fill(logits, keys, _NOTHING),
    store=functools.partial(_store, interpret=interpret),
    heads=tpu.heads_together(group, _stored(queries), _stored(keys)),
  )

  def stored(x):
    """The shape of an array for the kernel."""
    if x.ndim == 4:
      return (batch, x.shape[1], heads * width)
    return (batch, heads, 1, x.shape[2])

  def spec(x):
    if x.ndim == 4:
      block = (1, _stored(x.shape[1]), group * width)
      return pl.BlockSpec(block, lambda i, j: (i, 0, j))
    block = (1, group, 1, x.shape[2])
    return pl.BlockSpec(block, lambda i, j: (i, j, 0, 0))

  entries = batch * heads * queries * keys
  results = pl.pallas_call(
    functools.partial(kernel, memory=memory),
    grid=(batch, heads // group),
    in_specs=[spec(x) for x in operands],
    out_specs=[spec(x) for x in outs],
    out_shape=[jax.ShapeDtypeStruct(stored(x), x.dtype) for x in outs],
    interpret=interpret,
    name=kernel.__name__.replace('_kernel', '_attention'),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel')
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * entries * width,
      transcendentals=entries,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands, *outs)),
    ),
  )(*(x.reshape(stored(x)) for x in operands))
  return tuple(y.reshape(x.shape) for x, y in zip(outs, results, strict=True))
