"""How activations are split over devices, and laid out in a TPU's memory.

Nothing here changes values or gradients. Models call these functions in every
program; without a mesh (`jax.set_mesh`) that has the axes of
`vit_jax.parallel.mesh` the functions return their input.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.lax import DotDimensionNumbers, PrecisionLike
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def split_batch(x: jax.Array) -> jax.Array:
  """Splits the batch axis of an activation along the mesh axes for data.

  The gradient is split in the same way. Without this constraint, the compiler
  may choose to split activations like the weights and to replicate the batch,
  which takes hundreds of GiB with FSDP.

  Args:
    x: (B, ...). It is returned as it is if the devices do not divide B.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  if not axes or x.shape[0] % math.prod(mesh.shape[a] for a in axes):
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))


def constrain(x: jax.Array) -> jax.Array:
  """Fixes the sharding and layout of an activation (B, ...) between blocks.

  The batch is split over the devices, and on a TPU the order of the axes in
  memory is that of the array.
  """
  batch, _ = _split_axes()
  split = P(batch) if batch and can_split(x.shape[0], 0) else None
  return _lay_out(split_batch(x), range(x.ndim), split)


def tokens_last(x: jax.Array) -> jax.Array:
  """Lays out (B, T, H, K) with the tokens innermost in a TPU's memory.

  The matrix products of attention read the tokens along the 128 lanes. A single
  query, such as a class token, would fill one lane, so its layout is left to
  the compiler.
  """
  if x.shape[1] == 1:
    return x
  batch, tensor = _split_axes()
  fits = batch and can_split(x.shape[0], x.shape[2])
  split = P(batch, None, tensor) if fits else None
  return _lay_out(x, (0, 2, 3, 1), split)


def _lay_out(x: jax.Array, order: Sequence[int], split: P | None) -> jax.Array:
  """Fixes the order of an array's axes in a TPU's memory.

  Left alone, the compiler makes the batch the innermost axis in the residual
  stream and the tokens in attention (with 128 images per core). It then
  transposes q, k, v, the output and their gradients in every block, which takes
  a fifth of the time of a block of S/16.

  Each device lays out its own part. The compiler would make an array whole on
  every device first where heads are split, and on slices of 4x4x4 chips (v4,
  v5p) always: a step of B/16 on v5p:4x4x4 took 650 ms instead of 27.

  Args:
    x: an activation, or a gradient.
    order: its axes, the outermost (major) first.
    split: how the devices of the mesh split it; None if they do not split it
      evenly, or if that is not known.

  Returns:
    x, and on a mesh that is not of TPUs without any constraint.
  """
  if not _for_tpu():
    return x
  fix = lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(order)))
  if split is None or jax.sharding.get_abstract_mesh().size == 1:
    return fix(x)
  return jax.shard_map(fix, in_specs=split, out_specs=split)(x)


def _for_tpu() -> bool:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


def cores() -> int:
  """Number of cores of each device: two for a chip that is used as one device.

  1 without a mesh, or where the device does not say.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (device.num_cores if device is not None else None) or 1


def _split_axes() -> tuple[tuple[str, ...], str | None]:
  """The mesh axes that split the examples, and the one that splits the heads.

  ((), None) where no mesh is set, or where one of its axes is not of type Auto.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or any(t != AxisType.Auto for t in mesh.axis_types):
    return (), None
  return (
    tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names),
    'tensor' if 'tensor' in mesh.axis_names else None,
  )


def can_split(examples: int, heads: int) -> bool:
  """Whether `on_each_device` can split so many examples and heads.

  A kernel in a program for several devices needs a mesh with axes of type Auto
  that divide both. Without a mesh it is not known for how many devices the
  program is, so there must be only one.
  """
  mesh = jax.sharding.get_abstract_mesh()
  batch, tensor = _split_axes()
  if not batch:
    return mesh.size == 1 if not mesh.empty else jax.device_count() == 1
  return examples % math.prod(mesh.shape[a] for a in batch) == 0 and (
    tensor is None or heads % mesh.shape[tensor] == 0
  )


def on_each_device(
  fn: Callable[..., Any], ranks: Sequence[int]
) -> Callable[..., Any]:
  """`fn` under shard_map, because compilers cannot split a Pallas kernel.

  Examples and heads are split over the devices.

  Args:
    fn: takes and returns arrays (B, T, H, K), (B, H, T) or (N, 1), which are
      recognized by their rank; `can_split` says whether B and H fit. A result
      (1, H, K) of each device becomes one array (devices, H, K).
    ranks: of the arrays that `fn` returns, a tuple.
  """
  batch, heads = _split_axes()
  if not batch:
    return fn
  specs = {4: P(batch, None, heads), 3: P(batch, heads), 2: P()}  # by rank
  return lambda *args: jax.shard_map(
    fn,
    in_specs=tuple(specs[x.ndim] for x in args),
    out_specs=tuple(specs[rank] for rank in ranks),
    check_vma=False,
  )(*args)


def _lay_out_for_heads(x: jax.Array, order: Sequence[int]) -> jax.Array:
  """`_lay_out` of a kernel with heads, (D, H, K) or (H, K, D), or its gradient.

  It is whole on each device, or on those that share the heads. Left alone, the
  partitioner would sum a gradient, split it like the optimizer's state, gather
  it again, because the fixed layout does not let that sharding through, and
  split it a second time. That took 9 of 194 ms of the step of H/14 on v3:16x16.
  """
  batch, tensor = _split_axes()
  heads = 0 if order[0] == 0 else 1  # the axis of the heads
  split = None
  if batch and can_split(0, x.shape[heads]):
    split = P(tensor) if heads == 0 else P(None, tensor)
    x = jax.lax.with_sharding_constraint(x, split)
  return _lay_out(x, order, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_order(kernel: jax.Array, order: Sequence[int]) -> jax.Array:
  return _lay_out_for_heads(kernel, order)


_with_order.defvjp(
  lambda kernel, order: (_lay_out_for_heads(kernel, order), None),
  lambda order, _, g: (_lay_out_for_heads(g, order),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_gradient(
  x: jax.Array, change: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns x; in the backward pass, its gradient g becomes `change(g)`."""
  return x


with_gradient.defvjp(
  lambda x, change: (x, None), lambda change, _, g: (change(g),)
)


def kernel_for_heads(kernel: jax.Array, inputs: int) -> jax.Array:
  """A kernel with heads that is laid out for a TPU, and so is its gradient.

  A kernel with heads, (D, H, K) or (H, K, D), is stored with D as the innermost
  axis. For its gradient, and for a kernel that is gathered from other devices,
  the compiler would choose K, and a head width of 64 fills only half of the 128
  lanes. A gradient of L/16 takes 0.30 instead of 0.58 ms, and a step of L/16 on
  v3:8x8 with gathered kernels computes for 255 instead of 273 ms.

  Args:
    kernel: any kernel; one without heads is returned as it is.
    inputs: number of its axes that are inputs, before the outputs.
  """
  if not _for_tpu() or kernel.ndim != 3:
    return kernel
  return _with_order(kernel, (1, 2, 0) if inputs == 1 else (0, 1, 2))


def dot_general(
  x: jax.Array,
  kernel: jax.Array,
  dims: DotDimensionNumbers,
  precision: PrecisionLike = None,
  *,
  before_dropout: bool = False,
  **kwargs: Any,
) -> jax.Array:
  """`lax.dot_general` for Dense layers, on a TPU.

  With `before_dropout`, the gradient of the result is stored before it is used.
  Otherwise the compiler computes the dropout mask twice, once in each of the
  two matrix products of the backward pass (0.3 ms more in the MLP). The bias of
  the layer is added after this function, so the sum for its gradient still
  shares the computation of the mask.

  Args:
    x, kernel, dims, precision, **kwargs: the arguments of
      `jax.lax.dot_general`.
    before_dropout: whether dropout is applied to the result.

  Returns:
    The result of `jax.lax.dot_general`.
  """
  if not _for_tpu():
    return jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  y: Any = jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if before_dropout:
    y = with_gradient(y, jax.lax.optimization_barrier)
  return y
