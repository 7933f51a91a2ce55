"""Attention as a Pallas kernel for TPUs, forward and backward.

A step of the kernel's grid loads up to four heads of one example and keeps
their logits on the chip, so that no (T, S) matrix is written to HBM. The
forward pass keeps one number for each query, the log normalizer of the softmax;
the backward pass computes the probabilities again.

The backward pass also gives the gradients of the biases of queries, keys and
values. They are sums over all tokens of all examples, and a pass of its own
over each of the three arrays would take a twelfth of the time of the
projections (`_backward_call`).

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
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from vit_jax.models import tpu_layout
from vit_jax.models.attention import add_biases

# The kernel is chosen for at most so many tokens on either side. For more, its
# logits do not fit into the memory of a core.
MAX_TOKENS = 640
# Tokens are stored in tiles of 128. With more padding than this, the plain form
# is faster: 257 tokens take three tiles, and a step of H/14 took 213 ms with
# the kernel and 203 without. For such numbers there is `tpu_first_token`.
_TOKENS_OF_TILE = 128
_MOST_PADDING = 4 / 3
# Logits of all heads that a step computes; more do not fit into the memory.
_MOST_LOGITS = 400_000
# Rows of the tiles in which bfloat16 arrays are stored on the chip.
_TILE_ROWS = 16


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


def _heads_of_a_step(heads: int, queries: int, keys: int) -> int:
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  biases: Sequence[jax.Array] | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    biases: of queries, keys and values, which are added to q, k and v: (H, K),
      (H, K) and (H, V). None for no biases.
    interpret: runs the kernel without a TPU, which is slow.

  Returns:
    (B, T, H, V).
  """
  return _forward(q, k, v, biases, interpret)[0]


def forward(
  q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool
) -> tuple[jax.Array, jax.Array]:
  """The output of the kernel, and the log normalizers (B, H, T) in float32."""
  run = functools.partial(_forward_call, interpret=interpret)
  return tpu_layout.on_each_device(run, (4, 3))(q, k, v)


def backward(*operands: jax.Array, interpret: bool) -> Sequence[jax.Array]:
  """The gradients of q, k and v.

  Args:
    *operands: q, k, v, the output, the log normalizers, and the gradient of the
      output. If there are other keys too, the output and the normalizers have
      to include them.
    interpret: see `attend`.
  """
  run = functools.partial(_backward_call, sums=False, interpret=interpret)
  return tpu_layout.on_each_device(run, (4, 4, 4))(*operands)


def _forward(q, k, v, biases, interpret):
  q, k, v = add_biases((q, k, v), biases)
  out, normalizer = forward(q, k, v, interpret)
  return out, (q, k, v, out, normalizer, biases)


def _backward(interpret, kept, g):
  *kept, biases = kept
  if biases is None:
    return *backward(*kept, g, interpret=interpret), None
  run = functools.partial(_backward_call, sums=True, interpret=interpret)
  # The sums of each device have an axis of one in the place of the batch.
  *grads, of_q, of_v = tpu_layout.on_each_device(run, (4, 4, 4, 3, 3))(*kept, g)
  # A bias of the keys adds the same number to all logits of a query, which the
  # softmax does not see.
  sums = (of_q.sum(0), jnp.zeros(biases[1].shape), of_v.sum(0))
  cast = [x.astype(b.dtype) for x, b in zip(sums, biases, strict=True)]
  return *grads, type(biases)(cast)


attend.defvjp(_forward, _backward)


def _forward_call(q, k, v, *, interpret):
  q, k, v = (jnp.moveaxis(x, 1, -1) for x in (q, k, v))
  batch, heads, _, queries = q.shape
  outs = (
    jax.ShapeDtypeStruct((*v.shape[:3], queries), v.dtype),
    jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
  )
  out, normalizer = _call(_forward_kernel, (q, k, v), outs, 2, interpret)
  return jnp.moveaxis(out, -1, 1), normalizer[:, :, 0]


def _backward_call(q, k, v, out, normalizer, g, *, sums, interpret):
  """The gradients of q, k and v, and with `sums` those of two biases.

  The bias of the queries gets the sum of the gradients of the queries. That of
  the values gets the sum of g, because the probabilities of a query sum to one.
  The kernel adds up examples and keeps the tokens apart, which takes one
  addition an entry; the sum over tokens is left to the compiler.
  """
  q, k, v, out, g = (jnp.moveaxis(x, 1, -1) for x in (q, k, v, out, g))
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  if sums:
    parts = _parts(q.shape[0])
    outs += [
      jax.ShapeDtypeStruct((parts, *x.shape[1:]), jnp.float32) for x in (q, g)
    ]
  operands = (q, k, v, out, normalizer[:, :, None], g)
  dq, dk, dv, *sums_of = _call(_backward_kernel, operands, outs, 5, interpret)
  return (
    *(jnp.moveaxis(x, -1, 1) for x in (dq, dk, dv)),
    *(_in_order(x.sum((0, 3)), q.dtype)[None] for x in sums_of),
  )


def _parts(batch: int) -> int:
  """Into how many parts, one for each core, the sums over a batch are split."""
  return 2 if batch % 2 == 0 and tpu_layout.cores() == 2 else 1


def _forward_kernel(q, k, v, out, normalizer, *, store):
  heads, scale = range(q.shape[1]), q.shape[2] ** -0.5
  values = [_load(v[0, h]) for h in heads]
  logits = [_over_rows(_load(k[0, h]), _load(q[0, h]) * scale) for h in heads]
  largest = [s.max(0, keepdims=True) for s in logits]
  weights = [jnp.exp(s - m) for s, m in zip(logits, largest, strict=True)]
  for h in heads:
    # Rows of ones below the values give the sums of the softmax with the same
    # matrix product. Eight rows are a tile.
    ones = jnp.ones((8, values[h].shape[1]), jnp.float32)
    sums = _dot(jnp.concatenate([values[h], ones]), weights[h], 1, 0)
    total = sums[-8:-7]
    store(out, h, sums[:-8] * (1 / total))
    normalizer[0, h] = largest[h] + jnp.log(total)


def _backward_kernel(q, k, v, out, normalizer, g, dq, dk, dv, *sums, store):
  heads, scale = range(q.shape[1]), q.shape[2] ** -0.5
  queries = [_load(q[0, h]) * scale for h in heads]
  keys = [_load(k[0, h]) for h in heads]
  grads = [_load(g[0, h]) for h in heads]
  logits = [_over_rows(keys[h], queries[h]) for h in heads]
  products = [_over_rows(_load(v[0, h]), grads[h]) for h in heads]
  weights = [jnp.exp(logits[h] - normalizer[0, h]) for h in heads]
  means = [(_load(out[0, h]) * grads[h]).sum(0, keepdims=True) for h in heads]
  logit_grads = [weights[h] * (products[h] - means[h]) for h in heads]
  first = pl.program_id(2) == 0
  for h in heads:
    store(dv, h, _dot(grads[h], weights[h], 1, 1))
    store(dk, h, _dot(queries[h], logit_grads[h], 1, 1))
    query_grads = _dot(keys[h], logit_grads[h], 1, 0) * scale
    store(dq, h, query_grads)
    if sums:
      for ref, x in zip(sums, (query_grads, grads[h]), strict=True):
        ref[0, h] = x + jnp.where(first, 0, ref[0, h])


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
  return dtype == jnp.bfloat16 and rows % _TILE_ROWS == 0


def _load(x: jax.Array) -> jax.Array:
  """Features (K, T) of one head as float32, their order changed.

  TPU v3 multiplies float32 only, and rounds the operands to bfloat16. A word of
  the chip's memory has two neighboring rows of a bfloat16 array, and taking the
  words apart takes a third of the time of a conversion. All even features then
  precede the odd ones, which changes no sum over features; `_store` undoes it.
  """
  if not _in_pairs(x.dtype, x.shape[0]):
    return x.astype(jnp.float32)
  words = pltpu.bitcast(x, jnp.int32)
  halves = (words << 16, words & jnp.int32(-(2**16)))
  as_float = lambda x: jax.lax.bitcast_convert_type(x, jnp.float32)
  return jnp.concatenate([as_float(x) for x in halves])


def _in_order(x: jax.Array, dtype: Any) -> jax.Array:
  """(H, K) with the features of `_load`, from a given dtype, in their order."""
  if not _in_pairs(dtype, x.shape[1]):
    return x
  return jnp.stack(jnp.split(x, 2, axis=1), axis=2).reshape(x.shape)


def _store(ref: Any, head: int, x: jax.Array, *, interpret: bool) -> None:
  """Writes features that have the order of `_load`."""
  if not _in_pairs(ref.dtype, x.shape[0]):
    ref[0, head] = x.astype(ref.dtype)
    return
  even, odd = jnp.split(x, 2)
  if interpret:  # only TPUs have `pack_elementwise`
    bits = lambda x: jax.lax.bitcast_convert_type(
      x.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32
    )
    words = jax.lax.shift_right_logical(bits(even), 16) | bits(odd)
  else:
    words = pltpu.pack_elementwise([even, odd], packed_dtype=jnp.bfloat16)
  ref[0, head] = pltpu.bitcast(words, jnp.bfloat16)


def _call(
  kernel: Callable[..., None],
  operands: Sequence[jax.Array],
  outs: Sequence[jax.ShapeDtypeStruct],
  products: int,
  interpret: bool,
) -> Any:
  """Calls a kernel on a grid of groups of heads and examples.

  Args:
    kernel: a function of references to one block of each operand and result.
    operands: (B, H, ..., tokens); the first is q, the second k.
    outs: shapes and dtypes of the results, (B, H, ..., tokens), or with
      `_parts(B)` in the place of B for those that add up examples.
    products: number of matrix products of each head.
    interpret: runs the kernel without a TPU.
  """
  batch, heads, width, queries = operands[0].shape
  group = _heads_of_a_step(heads, queries, operands[1].shape[3])
  parts = _parts(batch)
  examples = batch // parts

  def spec(x):
    index = lambda part, j, i: (part * examples + i, j, 0, 0)
    if x.shape[0] != batch:
      index = lambda part, j, i: (part, j, 0, 0)
    return pl.BlockSpec((1, group, *x.shape[2:]), index)

  entries = batch * heads * queries * operands[1].shape[3]
  return pl.pallas_call(
    functools.partial(
      kernel, store=functools.partial(_store, interpret=interpret)
    ),
    grid=(parts, heads // group, examples),
    in_specs=[spec(x) for x in operands],
    out_specs=[spec(x) for x in outs],
    out_shape=outs,
    interpret=interpret,
    name=kernel.__name__.strip('_').replace('_kernel', '_attention'),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary')
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * entries * width,
      transcendentals=entries,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands, *outs)),
    ),
  )(*operands)
