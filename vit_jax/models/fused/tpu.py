"""Attention as a Pallas kernel for TPUs, forward and backward.

A step of the kernel's grid loads up to four heads of one example and keeps
their logits on the chip, so that no (T, S) matrix is written to HBM. The
forward pass keeps one number for each query, the log normalizer of the softmax;
the backward pass computes the probabilities again.

The tokens are the last axis of the operands, as the model lays them out in
memory (`attention.MultiHeadDotProductAttention`), so the operands are not
copied. The matrices of logits have a row for each key and a column for each
query, because TPUs reduce over rows fastest. Every stage is written for all
heads of a step before the next stage, so that the compiler can overlap the
matrix products of one head with the exponentials of another.

B batch, T queries, S keys, H heads, K and V head widths.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from vit_jax.models import tpu_layout

# The kernel is chosen for at most so many tokens on either side. For more, its
# logits do not fit into the memory of a core.
MAX_TOKENS = 640
# Tokens are stored in tiles of 128. With 257, which take three, the plain form
# is faster (H/14: 203 ms a step, and 213 with the kernel).
_TOKENS_OF_TILE = 128
_MOST_PADDING = 4 / 3
# Logits of all heads that a step computes; more do not fit into the memory.
_MOST_LOGITS = 400_000
# Rows of the tiles in which bfloat16 arrays are stored on the chip.
TILE_ROWS = 16


def fits(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
  """Whether the kernel takes these operands and is faster than plain code.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
  """
  return (
    # A program for any batch size is exported with a symbol in its place.
    isinstance(q.shape[0], int)
    and q.dtype == k.dtype == v.dtype
    and q.dtype in (jnp.bfloat16, jnp.float32)
    # This also excludes a single query, such as a class token.
    and all(
      n <= MAX_TOKENS and _stored(n) <= _MOST_PADDING * n
      for n in (q.shape[1], k.shape[1])
    )
    and tpu_layout.can_split(q.shape[0], q.shape[2])
  )


def _stored(tokens: int) -> int:
  """Number of tokens with those that fill up the last tile."""
  return -(-tokens // _TOKENS_OF_TILE) * _TOKENS_OF_TILE


def heads_together(heads: int, queries: int, keys: int) -> int:
  """How many heads a step computes, a divisor of `heads`.

  With more heads, the matrix products of one overlap with the exponentials of
  another: four take 7 % less time than two on a v3, and 18 % less on a v5e.
  """
  logits = _stored(queries) * keys
  return max(
    n
    for n in (1, 2, 3, 4)
    if n == 1 or (heads % n == 0 and n * logits <= _MOST_LOGITS)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False
) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    interpret: runs the kernel without a TPU, which is slow.

  Returns:
    (B, T, H, V).
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
  q, k, v = (jnp.moveaxis(x, 1, -1) for x in (q, k, v))
  batch, heads, _, queries = q.shape
  outs = (
    jax.ShapeDtypeStruct((*v.shape[:3], queries), v.dtype),
    jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
  )
  out, normalizer = _call(forward_kernel, (q, k, v), outs, 2, interpret)
  return jnp.moveaxis(out, -1, 1), normalizer[:, :, 0]


def _backward_call(q, k, v, out, normalizer, g, *, interpret):
  q, k, v, out, g = (jnp.moveaxis(x, 1, -1) for x in (q, k, v, out, g))
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  operands = (q, k, v, out, normalizer[:, :, None], g)
  grads = _call(backward_kernel, operands, outs, 5, interpret)
  return tuple(jnp.moveaxis(x, -1, 1) for x in grads)


class Memory(NamedTuple):
  """How a kernel reads and writes its blocks.

  Attributes:
    queries, keys: functions that read the features of all heads of a block
      (K, tokens), float32, of arrays with a token for each query or key.
    without_padding: function that sets the logits (S, T) of keys behind the
      last one so low that they get no weight.
    store: function of a block and a list of features, which writes them.
    heads: how many heads are computed together.
  """

  queries: Callable[[Any], list[jax.Array]]
  keys: Callable[[Any], list[jax.Array]]
  without_padding: Callable[[jax.Array], jax.Array]
  store: Callable[[Any, list[jax.Array]], None]
  heads: int

  def groups(self, heads: int) -> list[range]:
    """All heads, divided into those that are computed together."""
    starts = range(0, heads, self.heads)
    return [range(i, min(i + self.heads, heads)) for i in starts]


def forward_kernel(
  q: Any, k: Any, v: Any, out: Any, normalizer: Any, *, memory: Memory
) -> None:
  """Computes the output, and the log normalizer of the softmax.

  Args:
    q, k, v, out: references to blocks that `memory` reads and writes.
    normalizer: a reference to a block (1, heads, 1, T).
    memory: how they are read and written.
  """
  queries, keys = memory.queries(q), memory.keys(k)
  values, scale = memory.keys(v), queries[0].shape[0] ** -0.5
  outs = []
  for heads in memory.groups(len(queries)):
    logits = {h: _over_rows(keys[h], queries[h] * scale) for h in heads}
    logits = {h: memory.without_padding(s) for h, s in logits.items()}
    largest = {h: logits[h].max(0, keepdims=True) for h in heads}
    weights = {h: jnp.exp(logits[h] - largest[h]) for h in heads}
    for h in heads:
      # Rows of ones below the values give the sums of the softmax with the
      # same matrix product. Eight rows are a tile.
      ones = jnp.ones((8, values[h].shape[1]), jnp.float32)
      sums = _dot(jnp.concatenate([values[h], ones]), weights[h], 1, 0)
      total = sums[-8:-7]
      outs.append(sums[:-8] * (1 / total))
      normalizer[0, h] = largest[h] + jnp.log(total)
  memory.store(out, outs)


def backward_kernel(
  q: Any,
  k: Any,
  v: Any,
  out: Any,
  normalizer: Any,
  g: Any,
  dq: Any,
  dk: Any,
  dv: Any,
  *,
  memory: Memory,
) -> None:
  """Computes the gradients dq, dk and dv of queries, keys and values.

  Args:
    q, k, v, out, normalizer, memory: as in `forward_kernel`.
    g: the gradient of the output.
    dq, dk, dv: references to the blocks of the results.
  """
  queries, keys = memory.queries(q), memory.keys(k)
  scale = queries[0].shape[0] ** -0.5
  queries = [x * scale for x in queries]
  grads, values, outs = memory.queries(g), memory.keys(v), memory.queries(out)
  of_queries, of_keys, of_values = [], [], []
  for heads in memory.groups(len(queries)):
    logits = {h: _over_rows(keys[h], queries[h]) for h in heads}
    logits = {h: memory.without_padding(s) for h, s in logits.items()}
    products = {h: _over_rows(values[h], grads[h]) for h in heads}
    weights = {h: jnp.exp(logits[h] - normalizer[0, h]) for h in heads}
    means = {h: (outs[h] * grads[h]).sum(0, keepdims=True) for h in heads}
    changes = {h: weights[h] * (products[h] - means[h]) for h in heads}
    for h in heads:
      of_values.append(_dot(grads[h], weights[h], 1, 1))
      of_keys.append(_dot(queries[h], changes[h], 1, 1))
      of_queries.append(_dot(keys[h], changes[h], 1, 0) * scale)
  memory.store(dv, of_values)
  memory.store(dk, of_keys)
  memory.store(dq, of_queries)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
  """The matrix product of a and b that sums over one axis of each."""
  return jax.lax.dot_general(
    a,
    b,
    (((axis_a,), (axis_b,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
  return _dot(a, b, 0, 0)


def _in_pairs(dtype: Any, rows: int) -> bool:
  return dtype == jnp.bfloat16 and rows % TILE_ROWS == 0


def _load(x: jax.Array) -> jax.Array:
  """Features (K, T) of one head as float32, their order changed.

  TPU v3 multiplies float32 only, and rounds the operands to bfloat16. A word of
  the chip's memory has two neighboring rows of a bfloat16 array, and taking the
  words apart takes a third of the time of a conversion. All even features then
  precede the odd ones, which changes no sum over features; `_store` undoes it.
  """
  if not _in_pairs(x.dtype, x.shape[0]):
    return x.astype(jnp.float32)
  return rows_apart(x)


def _store(ref: Any, xs: Sequence[jax.Array], *, interpret: bool) -> None:
  """Writes features that have the order of `_load`."""
  for head, x in enumerate(xs):
    if _in_pairs(ref.dtype, x.shape[0]):
      ref[0, head] = rows_joined(x, interpret)
    else:
      ref[0, head] = x.astype(ref.dtype)


def rows_apart(x: jax.Array) -> jax.Array:
  """The even rows of a bfloat16 matrix, then the odd ones, as float32.

  A word of a TPU's memory has two neighboring rows. Taking the words apart
  takes a third of the time of a conversion.

  Args:
    x: (N, M), with a multiple of 16 rows.

  Returns:
    (N, M).
  """
  words = pltpu.bitcast(x, jnp.int32)
  halves = (words << 16, words & jnp.int32(-(2**16)))
  as_float = lambda x: jax.lax.bitcast_convert_type(x, jnp.float32)
  return jnp.concatenate([as_float(x) for x in halves])


def rows_joined(x: jax.Array, interpret: bool) -> jax.Array:
  """The bfloat16 matrix (N, M) of which `rows_apart` gives x.

  Args:
    x: (N, M).
    interpret: whether no TPU runs it; only TPUs have `pack_elementwise`.
  """
  even, odd = jnp.split(x, 2)
  if interpret:
    bits = lambda x: jax.lax.bitcast_convert_type(
      x.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32
    )
    words = jax.lax.shift_right_logical(bits(even), 16) | bits(odd)
  else:
    words = pltpu.pack_elementwise([even, odd], packed_dtype=jnp.bfloat16)
  return pltpu.bitcast(words, jnp.bfloat16)


def _call(
  kernel: Callable[..., None],
  operands: Sequence[jax.Array],
  outs: Sequence[jax.ShapeDtypeStruct],
  products: int,
  interpret: bool,
) -> Any:
  """Calls a kernel on a grid of examples and groups of heads.

  Args:
    kernel: a function of references to one block of each operand and result.
    operands: (B, H, ..., tokens); the first is q, the second k.
    outs: shapes and dtypes of the results, (B, H, ..., tokens).
    products: number of matrix products of each head.
    interpret: runs the kernel without a TPU.
  """
  batch, heads, width, queries = operands[0].shape
  group = heads_together(heads, queries, operands[1].shape[3])
  spec = lambda x: pl.BlockSpec(
    (1, group, *x.shape[2:]), lambda i, j: (i, j, 0, 0)
  )
  entries = batch * heads * queries * operands[1].shape[3]
  load = lambda ref: [_load(ref[0, h]) for h in range(ref.shape[1])]
  memory = Memory(
    queries=load,
    keys=load,
    without_padding=lambda logits: logits,
    store=functools.partial(_store, interpret=interpret),
    heads=group,
  )
  return pl.pallas_call(
    functools.partial(kernel, memory=memory),
    grid=(batch, heads // group),
    in_specs=[spec(x) for x in operands],
    out_specs=[spec(x) for x in outs],
    out_shape=outs,
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
  )(*operands)
