"""How arrays are laid out on a TPU, and split over devices."""

from collections.abc import Callable
import contextlib
import contextvars
import functools
import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

_PORTABLE = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable():
  """Within it, models are traced without kernels for one kind of device.

  For programs that are lowered for several platforms at once (`jax.export`).
  """
  token = _PORTABLE.set(True)
  try:
    yield
  finally:
    _PORTABLE.reset(token)


def is_portable() -> bool:
  return _PORTABLE.get()


def split_batch(x: jax.Array) -> jax.Array:
  """Splits the batch axis of an activation along the mesh axes for data.

  Left alone, the partitioner may follow sharded weights and replicate the
  batch (hundreds of GiB for FSDP). It holds for the gradient as well. Without
  a mesh (`jax.set_mesh`) with these axes it is the identity, so models need to
  know nothing of training.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  if not axes or x.shape[0] % math.prod(mesh.shape[a] for a in axes):
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))


def pin(x: jax.Array) -> jax.Array:
  """`split_batch`, and on a TPU its axes in order: the state between blocks."""
  return lay_out(split_batch(x), range(x.ndim))


def lay_out(x: jax.Array, order) -> jax.Array:
  """Fixes the memory order of an activation's axes on a TPU, major first.

  Left alone with 128 images a core, the compiler keeps the batch innermost
  between blocks and the tokens innermost within attention, and copies q, k, v,
  the output and their gradients to and fro: a fifth of a block of S/16. Off
  a TPU mesh it is the identity.
  """
  if not _for_tpu():
    return x
  return with_layout_constraint(x, Layout(major_to_minor=tuple(order)))


def _for_tpu() -> bool:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_gradient(x, change: Callable):
  """x, whose gradient is `change(gradient)`."""
  return x


def product(
  x, kernel, dims, precision=None, *, before_dropout: bool = False, **kwargs
):
  """`lax.dot_general` for Dense layers; on a TPU, says how gradients lie.

  The gradient of a kernel with heads, (D, H, K) or (H, K, D), is written with
  D innermost: left alone, K is, and a head width of 64 fills half of the
  lanes (L/16: 0.58 ms instead of 0.30). Before a dropout, the gradient of the
  product is kept in memory: left alone, the mask is computed again in each
  product of the backward pass (0.3 ms more in the MLP). The bias is not yet
  in the product, so that its gradient is summed where the mask is computed.
  """
  if not _for_tpu():
    return jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if kernel.ndim == 3:
    order = (1, 2, 0) if len(dims[0][1]) == 1 else (0, 1, 2)
    kernel = _with_gradient(kernel, functools.partial(lay_out, order=order))
  y = jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if before_dropout:
    y = _with_gradient(y, jax.lax.optimization_barrier)
  return y
