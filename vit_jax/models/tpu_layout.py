"""How activations are split over devices, and laid out in a TPU's memory.

Everything here leaves values and gradients as they are. Without a mesh
(`jax.set_mesh`) with the axes of `vit_jax.parallel.mesh` nothing is done, so
models need to know nothing of training.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import functools
import math
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

_PORTABLE = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """In this context, models are traced without kernels of one platform.

  `jax.export` lowers a program for several platforms at once, and a Pallas
  kernel for TPUs cannot be lowered for the others.
  """
  token = _PORTABLE.set(True)
  try:
    yield
  finally:
    _PORTABLE.reset(token)


def is_portable() -> bool:
  """Whether the caller runs inside of `portable()`."""
  return _PORTABLE.get()


def split_batch(x: jax.Array) -> jax.Array:
  """Splits the batch axis of an activation along the mesh axes for data.

  The constraint holds for the gradient too. Without it the partitioner may
  follow sharded weights and replicate the batch, which costs hundreds of GiB
  with FSDP.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  if not axes or x.shape[0] % math.prod(mesh.shape[a] for a in axes):
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))


def constrain(x: jax.Array) -> jax.Array:
  """Fixes sharding and layout of the activation that enters a block.

  The batch is split over the devices, and on a TPU the axes lie in memory in
  their logical order.
  """
  return lay_out(split_batch(x), range(x.ndim))


def lay_out(x: jax.Array, order: Sequence[int]) -> jax.Array:
  """Fixes the order of an activation's axes in a TPU's memory, major first.

  With 128 images per core, the compiler by itself puts the batch innermost
  between blocks and the tokens innermost inside attention. It then transposes
  q, k, v, the output and their gradients in every block, which takes a fifth
  of the time of a block of S/16. Off a TPU mesh this is the identity.
  """
  if not _for_tpu():
    return x
  return with_layout_constraint(x, Layout(major_to_minor=tuple(order)))


def _for_tpu() -> bool:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_gradient(
  x: jax.Array, change: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns x. In the backward pass its gradient g becomes `change(g)`."""
  return x


with_gradient.defvjp(
  lambda x, change: (x, None), lambda change, _, g: (change(g),)
)


def dot_general(
  x: jax.Array,
  kernel: jax.Array,
  dims: Any,
  precision: Any = None,
  *,
  before_dropout: bool = False,
  **kwargs: Any,
) -> jax.Array:
  """`lax.dot_general` for Dense layers, with gradients laid out for a TPU.

  The gradient of a kernel with heads, (D, H, K) or (H, K, D), is written with
  D innermost. The compiler by itself chooses K, and a head width of 64 fills
  half of the 128 lanes (L/16: 0.58 ms per block instead of 0.30).

  The gradient of the product is kept in memory if a dropout follows
  (`before_dropout`). Otherwise the compiler evaluates the dropout mask again
  in each of the two products of the backward pass (0.3 ms more in the MLP).
  The layer adds its bias after this product, so the sum for the bias gradient
  is still computed together with the mask.
  """
  if not _for_tpu():
    return jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if kernel.ndim == 3:
    order = (1, 2, 0) if len(dims[0][1]) == 1 else (0, 1, 2)
    kernel = with_gradient(kernel, functools.partial(lay_out, order=order))
  y: Any = jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if before_dropout:
    y = with_gradient(y, jax.lax.optimization_barrier)
  return y
