"""Area attention without areas, as a program: jnp, or a kernel on TPUs.

The functions of a head's matrices (`area_matrix`) make two programs: batched
jnp, and a Pallas kernel that holds the matrices of a head on the chip, so that
none goes through HBM. docs/area_attention.md has their figures.

B batch, T queries, N rows of the strip, H heads, K and V head widths.
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vit_jax.models import tpu_layout
from vit_jax.models.area import matrix

# Entries of a head's matrix up to which the kernel is chosen (224 px at patch
# 16 and 14). Beyond, its code grows faster than its advantage.
KERNEL_ENTRIES = 320 * 320

# Program 1, jnp. On a CPU head by head, because matrices of all heads would
# not stay in its caches.

_heads_first = lambda x: jnp.moveaxis(x, 2, 0)
_heads_last = lambda x: jnp.moveaxis(x, 0, 2)


def _all_heads(fn, by_head: bool, args):
  return jax.lax.map(lambda a: fn(*a), args) if by_head else fn(*args)


def _jnp_forward(q, k, v, bias, *, areas, value_mode, by_head):
  fn = lambda q, k, v: matrix.forward(q, k, v, bias, areas, value_mode)
  k, v = [matrix.strip(x, areas) for x in (k, v)]
  out, normaliser = _all_heads(
    fn, by_head, [_heads_first(x) for x in (q, k, v)]
  )
  return _heads_last(out), jnp.moveaxis(normaliser[:, :, 0], 0, 1)


def _jnp_backward(q, k, v, bias, normaliser, g, *, areas, value_mode, by_head):
  fn = lambda q, k, v, normaliser, g: matrix.backward(
    q, k, v, bias, normaliser, g, areas, value_mode
  )
  k, v = [matrix.strip(x, areas) for x in (k, v)]
  normaliser = jnp.moveaxis(normaliser, 1, 0)[:, :, None]
  q, k, v, g = [_heads_first(x) for x in (q, k, v, g)]
  grads = _all_heads(fn, by_head, (q, k, v, normaliser, g))
  dq, dk, dv = [_heads_last(x) for x in grads]
  return dq, matrix.unstrip(dk, areas), matrix.unstrip(dv, areas)


# Program 2, a Pallas kernel for TPUs: a grid step loads some heads of one
# example and keeps their matrices on the chip. Tokens come last, as
# `layers.MultiHeadDotProductAttention` lays q, k and v out on a TPU, so nothing
# is copied before or after. The operands of its products are float32, which
# costs nothing and which TPU v3 needs.


def kernel_group(heads: int) -> int:
  """Heads in a grid step: more of them hide its start, and are more code."""
  return 2 if heads % 2 == 0 else 1


def _forward_kernel(q, k, v, bias, out, normaliser, *, areas, value_mode):
  for h in range(q.shape[1]):
    head = lambda x, h=h: x[0, h].astype(jnp.float32)
    y, log = matrix.forward(
      head(q),
      matrix.strip(head(k), areas),
      matrix.strip(head(v), areas),
      bias[...],
      areas,
      value_mode,
      last=True,
    )
    out[0, h] = y.astype(out.dtype)
    normaliser[0, h] = log


def _backward_kernel(
  q, k, v, bias, normaliser, g, dq, dk, dv, *, areas, value_mode
):
  for h in range(q.shape[1]):
    head = lambda x, h=h: x[0, h].astype(jnp.float32)
    grads = matrix.backward(
      head(q),
      matrix.strip(head(k), areas),
      matrix.strip(head(v), areas),
      bias[...],
      normaliser[0, h],
      head(g),
      areas,
      value_mode,
      last=True,
    )
    dq[0, h] = grads[0].astype(dq.dtype)
    dk[0, h] = matrix.unstrip(grads[1], areas).astype(dk.dtype)
    dv[0, h] = matrix.unstrip(grads[2], areas).astype(dv.dtype)


def _pallas(kernel, args, outs, interpret):
  """Calls `kernel` on a grid of examples and groups of heads.

  Args and outs are (B, H, ...), or the bias (N, 1).
  """
  heads = args[0].shape[1]
  group = kernel_group(heads)

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


_tokens_last = lambda x: jnp.moveaxis(x, 1, -1)  # (B, H, K, T)
_tokens_second = lambda x: jnp.moveaxis(x, -1, 1)


def _kernel_forward(q, k, v, bias, *, areas, value_mode, interpret=False):
  q, k, v = [_tokens_last(x) for x in (q, k, v)]
  batch, heads, _, queries = q.shape
  outs = [
    jax.ShapeDtypeStruct((*v.shape[:3], queries), v.dtype),
    jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
  ]
  kernel = functools.partial(
    _forward_kernel, areas=areas, value_mode=value_mode
  )
  out, normaliser = _pallas(kernel, [q, k, v, bias], outs, interpret)
  return _tokens_second(out), normaliser[:, :, 0]


def _kernel_backward(
  q, k, v, bias, normaliser, g, *, areas, value_mode, interpret=False
):
  q, k, v, g = [_tokens_last(x) for x in (q, k, v, g)]
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  kernel = functools.partial(
    _backward_kernel, areas=areas, value_mode=value_mode
  )
  grads = _pallas(
    kernel, [q, k, v, bias, normaliser[:, :, None], g], outs, interpret
  )
  return tuple(_tokens_second(x) for x in grads)


# Which program, and the gradient.


def _mesh_axes() -> tuple[tuple[str, ...], str | None]:
  """Mesh axes of examples and of heads, (), None without an Auto mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or any(t != AxisType.Auto for t in mesh.axis_types):
    return (), None
  return (
    tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names),
    'tensor' if 'tensor' in mesh.axis_names else None,
  )


def _kernel_fits(q, k) -> bool:
  if not isinstance(q.shape[0], int):  # an exported program of any batch size
    return False
  batch, heads = _mesh_axes()
  sizes = jax.sharding.get_abstract_mesh().shape
  return (
    not tpu_layout.is_portable()
    and q.shape[1] * k.shape[1] <= KERNEL_ENTRIES
    and q.shape[0] % math.prod(sizes[a] for a in batch) == 0
    and (heads is None or q.shape[2] % sizes[heads] == 0)
  )


def _on_each_device(fn, outs: int):
  """Compilers cannot split a kernel: shard_map over examples and heads."""
  batch, heads = _mesh_axes()
  if not batch:
    return fn
  specs = {4: P(batch, None, heads), 3: P(batch, heads), 2: P()}  # by rank
  out_specs = (specs[4], specs[3]) if outs == 2 else (specs[4],) * outs
  return lambda *args: jax.shard_map(
    fn,
    in_specs=tuple(specs[x.ndim] for x in args),
    out_specs=out_specs,
    check_vma=False,
  )(*args)


def _run(program, jnp_program, kernel, outs: int, args):
  if tpu_layout.is_portable():
    return jnp_program(*args, by_head=False)
  jnp_programs = dict(
    cpu=functools.partial(jnp_program, by_head=True),
    default=functools.partial(jnp_program, by_head=False),
  )
  on_tpu = {'tpu': _on_each_device(kernel, outs)}
  if program == 'kernel':
    interpreted = functools.partial(kernel, interpret=True)
    programs = on_tpu | {'default': _on_each_device(interpreted, outs)}
  elif program == 'auto' and _kernel_fits(args[0], args[1]):
    programs = jnp_programs | on_tpu
  else:
    programs = jnp_programs
  return jax.lax.platform_dependent(*args, **programs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def factored(q, k, v, areas, value_mode: str = 'sum', program: str = 'auto'):
  """Area attention with mean keys and sum or mean values.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    areas: an `area_attention.Areas`.
    value_mode: 'sum' or 'mean'.
    program: 'jnp'; 'kernel' (interpreted where there is no TPU: slow); or
      'auto', the kernel on TPUs where it pays. Under a mesh whose axes have the
      names of `vit_jax.parallel.mesh`, each device runs the kernel on its part.

  Returns:
    (B, T, H, V). Between the passes only q, k, v and one float32 number for
    each query and head stay alive.
  """
  return _factored_fwd(q, k, v, areas, value_mode, program)[0]


def _factored_fwd(q, k, v, areas, value_mode, program):
  fixed = dict(areas=areas, value_mode=value_mode)
  out, normaliser = _run(
    program,
    functools.partial(_jnp_forward, **fixed),
    functools.partial(_kernel_forward, **fixed),
    2,
    (q, k, v, matrix.bias(areas)),
  )
  return out, (q, k, v, normaliser)


def _factored_bwd(areas, value_mode, program, residuals, g):
  # The barrier keeps the compiler from saving the forward pass's logits.
  (q, k, v, normaliser), g = jax.lax.optimization_barrier((residuals, g))
  fixed = dict(areas=areas, value_mode=value_mode)
  return _run(
    program,
    functools.partial(_jnp_backward, **fixed),
    functools.partial(_kernel_backward, **fixed),
    3,
    (q, k, v, matrix.bias(areas), normaliser, g),
  )


factored.defvjp(_factored_fwd, _factored_bwd)


def item_weights(q, k, areas, value_mode: str = 'sum'):
  """Weights (B, H, T, S) with which the items' values enter the output."""
  q, k = jnp.moveaxis(q, 2, 1), jnp.moveaxis(matrix.strip(k, areas), 2, 1)
  weights, _ = matrix.forward_matrices(
    matrix.logits(q, k, matrix.bias(areas)), areas, value_mode
  )
  items = matrix.unstrip(jnp.moveaxis(weights, 2, 1), areas)  # (B, S, H, T)
  return jnp.einsum('bsht->bhts', items)
