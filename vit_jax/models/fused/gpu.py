"""Attention on NVIDIA GPUs, through cuDNN.

cuDNN computes one tile of queries after the other and keeps the logits on the
chip (arXiv:2307.08691), so no array of B x H x T x S numbers is written to
memory in either pass. `jax.nn.dot_product_attention` calls it. `takes` says for
which arrays: the limits are those of cuDNN and JAX, and `SHORTEST` says from
how many tokens on it is expected to be faster than the plain form. All other
arrays take the plain form, `attention.attend`, and none is an error.

Nothing here has been run on a GPU, and the thresholds were not measured by this
project. They follow the figures that FlashAttention gives in its README (A100,
forward and backward pass, 12 heads of width 64): 2 to 4 times the speed of the
plain form of PyTorch for 128 to 4,096 tokens, and less for heads of width 128.
It has no figures for fewer tokens. `python -m benchmarks.attention` measures
both forms on a GPU.

B batch, T queries, S keys, H heads, K and V head widths.
"""

import concurrent.futures
import functools
import math
import re
from typing import Literal

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vit_jax.models import attention

# (largest head width, fewest tokens with which cuDNN is used).
SHORTEST = ((64, 128), (128, 256))
# Ampere, from docs.nvidia.com/cudnn/operations/Attention. Gradients on it need
# a head width of at most 128.
_OLDEST = (8, 0)
_MULTIPLE = 8  # of which head widths are, in `jax.nn.dot_product_attention`


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).

  Returns:
    (B, T, H, V).
  """
  if not takes(q, k, v):
    return attention.attend(q, k, v)[0]
  if not _splits():
    return library_attention(q, k, v)
  # A compiler cannot split the call of a library over devices.
  mesh = jax.sharding.get_abstract_mesh()
  examples = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  heads = 'tensor' if 'tensor' in mesh.axis_names else None
  spec = P(examples or None, None, heads)
  return jax.shard_map(
    library_attention, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
  )(q, k, v)


def takes(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
  """Whether cuDNN computes these arrays, and is expected to be faster.

  It is not used for

  - float32, for which it has no kernel;
  - few queries or keys (`SHORTEST`), such as a class token that is the only
    query;
  - values that are not as wide as the keys, and head widths above 128 or not
    divisible by 8;
  - GPUs before Ampere or of AMD, and a jaxlib without cuDNN;
  - examples or heads that the devices of the mesh do not divide evenly;
  - a program that is exported for any batch size.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
  """
  if not all(isinstance(n, int) for n in q.shape):
    return False
  batch, tokens, heads, width = q.shape
  keys = k.shape[1]
  shortest = [n for most, n in SHORTEST if width <= most]
  return (
    q.dtype in (jnp.bfloat16, jnp.float16)
    and q.dtype == k.dtype == v.dtype
    and k.shape == v.shape == (batch, keys, heads, width)
    and width % _MULTIPLE == 0
    and bool(shortest)
    and min(tokens, keys) >= min(shortest)
    and capability() >= _OLDEST
    and _divides(batch, heads)
    and compiles(tokens, keys, heads, width, str(q.dtype))
  )


def library_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
  """Attention by `jax.nn.dot_product_attention`, for any number of tokens.

  In JAX 0.10 the gradients of cuDNN need even numbers. So an odd number of
  keys, as with a class token, gets one more, to which no query attends, and an
  odd number of queries one whose result is dropped.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, K).
    implementation: 'cudnn', or 'xla' for any device.

  Returns:
    (B, T, H, K).
  """
  tokens, keys = q.shape[1], k.shape[1]
  lengths = None
  more = ((0, 0), (0, 1), (0, 0), (0, 0))
  if tokens % 2:
    q = jnp.pad(q, more)
  if keys % 2:
    k, v = jnp.pad(k, more), jnp.pad(v, more)
    lengths = jnp.full(k.shape[0], keys, jnp.int32)
  y = jax.nn.dot_product_attention(
    q, k, v, key_value_seq_lengths=lengths, implementation=implementation
  )
  return y[:, :tokens]


def capability() -> tuple[int, int]:
  """The lowest compute capability of all GPUs of the job, such as (8, 0).

  (0, 0) without a GPU, and for GPUs of AMD, whose capability is a name. All
  processes of a job see the same GPUs, so they make the same program.
  """
  try:
    devices = jax.devices('gpu')
  except RuntimeError:  # this jaxlib has no GPU
    return (0, 0)
  numbers = [
    re.fullmatch(r'(\d+)\.(\d+)', str(getattr(d, 'compute_capability', '')))
    for d in devices
  ]
  return min((int(m[1]), int(m[2])) if m else (0, 0) for m in numbers)


@functools.cache
def compiles(
  tokens: int, keys: int, heads: int, width: int, dtype: str
) -> bool:
  """Whether both passes of one example compile for the GPU of this process.

  Neither JAX nor this package knows all limits of the installed cuDNN. The
  compilation takes about a second, once for each shape.

  Args:
    tokens, heads, width: the shape of the queries of an example.
    keys: number of keys.
    dtype: of queries and keys.
  """

  def compile_both():
    one = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='gpu')[0])
    q, k = (
      jax.ShapeDtypeStruct((1, n, heads, width), dtype, sharding=one)
      for n in (tokens, keys)
    )
    both = lambda *qkv: jax.vjp(library_attention, *qkv)[1](qkv[0])
    jax.jit(both).lower(q, k, k).compile()

  try:
    # A thread of its own has no mesh. The caller's mesh has other devices.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      thread.submit(compile_both).result()
  except (RuntimeError, NotImplementedError, ValueError) as e:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    logging.warning(
      'cuDNN attention does not compile for %d queries, %d keys, %d heads of '
      'width %d in %s, so the plain form is used: %s',
      *(tokens, keys, heads, width, dtype, reason[:200]),
    )
    return False
  return True


def _splits() -> bool:
  """Whether a mesh of several devices is set over which arrays are split.

  Within a shard_map, the arrays are those of one device already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and all(t == AxisType.Auto for t in mesh.axis_types)


def _divides(batch: int, heads: int) -> bool:
  """Whether the mesh divides the examples and the heads evenly."""
  mesh = jax.sharding.get_abstract_mesh()
  if any(t == AxisType.Explicit for t in mesh.axis_types):
    return False  # the types of the arrays name their axes then
  sizes = dict(mesh.shape) if _splits() else {}
  examples = math.prod(sizes.get(a, 1) for a in ('data', 'fsdp'))
  return batch % examples == 0 and heads % sizes.get('tensor', 1) == 0
