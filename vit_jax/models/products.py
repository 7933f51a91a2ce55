"""Products of matrices and convolutions, for the device at hand.

Nothing here changes the values of a model beyond rounding. A CPU multiplies two
matrices fastest, so there the axes of a batch become one; a TPU gets the layout
of `tpu_layout`.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, cast

import jax
from jax.lax import DotDimensionNumbers, PrecisionLike
import jax.numpy as jnp

from vit_jax.models import (
  cpu_products,
  onednn,
  onednn_convolutions,
  onednn_products,
  tpu_layout,
)
from vit_jax.models.activations import activate
from vit_jax.models.platform import on_one_cpu, target_platform


def dot_general(
  x: jax.Array,
  kernel: jax.Array,
  dims: DotDimensionNumbers,
  precision: PrecisionLike = None,
  *,
  before_dropout: bool = False,
  **kwargs: Any,
) -> jax.Array:
  """`lax.dot_general` of a Dense layer.

  On a CPU, the operands become matrices. With more axes, the gradient of the
  kernel would first be computed from a transposed copy of the activations,
  which takes a tenth of the time of an MLP.

  Args:
    x: (..., *inputs).
    kernel: (*inputs, *outputs).
    dims, precision, **kwargs: the other arguments of `jax.lax.dot_general`.
    before_dropout: whether dropout is applied to the result; see
      `tpu_layout.dot_general`.

  Returns:
    (..., *outputs).
  """
  axes = len(dims[0][0])
  last = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
  if not on_one_cpu() or dims != (last, ((), ())):
    return tpu_layout.dot_general(
      x, kernel, dims, precision, before_dropout=before_dropout, **kwargs
    )
  del precision, kwargs  # they make no difference on a CPU
  inputs = math.prod(kernel.shape[:axes])
  y = cpu_products.matmul(x.reshape(-1, inputs), kernel.reshape(inputs, -1))
  return y.reshape(*x.shape[: x.ndim - axes], *kernel.shape[axes:])


def fuses_bias(x: jax.Array, kernel: jax.Array) -> bool:
  """Whether a bias is added faster with the product than after it.

  It is with oneDNN, in bfloat16: a pass over a product that also transposes it
  takes three times as long if it adds a bias, which the compiler does in
  float32. A pass over float32 takes no longer with a bias.

  Args:
    x, kernel: as in `dense`.
  """
  return x.dtype == jnp.bfloat16 and _with_onednn(x, kernel)


def _with_onednn(x: jax.Array, kernel: jax.Array) -> bool:
  return on_one_cpu() and onednn.is_used(x, kernel)


def dense(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  activation: str | None = None,
  *,
  before_dropout: bool = False,
) -> jax.Array:
  """A product with a bias, and an activation.

  Args:
    x: (..., I).
    kernel: (I, *outputs), of the same dtype.
    bias: (*outputs), of the same dtype; None for none.
    activation: key of `activations.GELU`; None for none.
    before_dropout: whether dropout is applied to the result; see
      `tpu_layout.dot_general`.

  Returns:
    (..., *outputs).
  """
  if bias is not None and _with_onednn(x, kernel):
    inputs, *outputs = kernel.shape
    y = onednn_products.dense(
      x.reshape(-1, inputs),
      kernel.reshape(inputs, -1),
      bias.reshape(-1),
      activation,
    )
    return y.reshape(*x.shape[:-1], *outputs)
  dims = (((x.ndim - 1,), (0,)), ((), ()))
  y = dot_general(x, kernel, dims, before_dropout=before_dropout)
  if bias is not None:
    y = add_parameter(y, bias)
  return activate(y, activation)


def add_parameter(x: jax.Array, parameter: jax.Array) -> jax.Array:
  """The sum of activations and a parameter, such as a bias.

  On a CPU, the parameter's gradient is the sum of the rows of a matrix, or if
  there are few rows, a product with ones. The compiler's own sum over other
  axes takes two to forty times as long.

  Args:
    x: (..., *shape).
    parameter: (*shape), of the same dtype.

  Returns:
    (..., *shape).
  """
  return x + _like(parameter, x)


def multiply_parameter(x: jax.Array, parameter: jax.Array) -> jax.Array:
  """The product of activations and a parameter, such as LayerScale's.

  Args:
    x: (..., *shape).
    parameter: (*shape), of the same dtype. On a CPU its gradient is computed as
      in `add_parameter`.

  Returns:
    (..., *shape).
  """
  return x * _like(parameter, x)


def _like(parameter: jax.Array, x: jax.Array) -> jax.Array:
  """`parameter`, which can be added to x or multiplied with it."""
  lead = x.shape[: x.ndim - parameter.ndim]
  if on_one_cpu():
    return cast(jax.Array, _spread(parameter, lead))
  return jnp.expand_dims(parameter, tuple(range(len(lead))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(parameter, lead):
  """`parameter` with further axes in front, of the lengths `lead`."""
  return jnp.broadcast_to(parameter, (*lead, *parameter.shape))


def _spread_backward(lead, shape, g):
  rows = g.reshape(math.prod(lead), math.prod(shape))
  if rows.shape[0] < rows.shape[1]:
    ones = jnp.ones((1, rows.shape[0]), g.dtype)
    wide = jnp.promote_types(g.dtype, jnp.float32)
    total = jnp.matmul(ones, rows, preferred_element_type=wide)
    return (total.reshape(shape).astype(g.dtype),)
  return (rows.sum(0).reshape(shape),)


_spread.defvjp(
  lambda parameter, lead: (_spread(parameter, lead), parameter.shape),
  _spread_backward,
)


def attention_logits(q: jax.Array, k: jax.Array) -> jax.Array:
  """The products of all queries with all keys.

  On a CPU, the heads come before the tokens in memory first: the products are
  up to twice as fast then, and so are those of the gradient.

  Args:
    q, k: (B, T, H, K), (B, S, H, K).

  Returns:
    (B, H, T, S).
  """
  if target_platform() != 'cpu':
    return jnp.einsum('bthk,bshk->bhts', q, k)
  q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
  if onednn.is_used(q, k):
    return onednn_products.product(q, k, transpose_b=True)
  return jnp.einsum('bhtk,bhsk->bhts', q, k)


def attention_output(weights: jax.Array, v: jax.Array) -> jax.Array:
  """The sums of all values, weighted for each query.

  Args:
    weights: (B, H, T, S).
    v: (B, S, H, V).

  Returns:
    (B, T, H, V).
  """
  if target_platform() != 'cpu':
    return jnp.einsum('bhts,bshv->bthv', weights, v)
  v = jnp.swapaxes(v, 1, 2)
  if onednn.is_used(weights, v):
    y = onednn_products.product(weights, v)
  else:
    y = jnp.einsum('bhts,bhsv->bhtv', weights, v)
  return jnp.swapaxes(y, 1, 2)


def mix_maps(maps: jax.Array, kernel: jax.Array) -> jax.Array:
  """Linear combinations of the heads' maps.

  Args:
    maps: (B, H, T, S).
    kernel: (H, G).

  Returns:
    (B, G, T, S).
  """
  if target_platform() != 'cpu':
    return jnp.einsum('bhts,hg->bgts', maps, kernel)
  batch, heads, *map_shape = maps.shape
  # One product for each example, so that nothing is transposed.
  kernels = jnp.broadcast_to(kernel.T[None], (batch, kernel.shape[1], heads))
  matmul = (
    onednn_products.product if onednn.is_used(maps, kernel) else jnp.matmul
  )
  y = matmul(kernels, maps.reshape(batch, heads, -1))
  return y.reshape(batch, -1, *map_shape)


def patch_convolution(
  x: jax.Array, kernel: jax.Array, strides: Any, *args: Any, **kwargs: Any
) -> jax.Array:
  """`lax.conv_general_dilated` of a convolution without overlap.

  On a CPU it is a matrix product of the patches, which has twice the speed of
  the convolution there, forward and backward.

  Args:
    x: (B, H, W, C).
    kernel: (height, width, C, D).
    strides: (height, width) of the kernel.
    *args, **kwargs: the other arguments, those of a convolution of (B, H, W, C)
      without padding, dilation and groups.

  Returns:
    (B, H / height, W / width, D).
  """
  if not on_one_cpu():
    return jax.lax.conv_general_dilated(x, kernel, strides, *args, **kwargs)
  height, width, channels, features = kernel.shape
  rows, columns = x.shape[1] // height, x.shape[2] // width
  x = x[:, : rows * height, : columns * width]
  x = x.reshape(-1, rows, height, columns, width, channels)
  x = jnp.swapaxes(x, 2, 3).reshape(-1, height * width * channels)
  y = cpu_products.matmul(x, kernel.reshape(-1, features))
  return y.reshape(-1, rows, columns, features)


# From so many positions on, the gradient of a 3x3 kernel is faster as nine
# products than as a convolution on a CPU (83 against 53 GFLOP/s at 28 x 28,
# equal at 14 x 14; jaxlib 0.10).
_POSITIONS = 28 * 28


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  feature_group_count: int = 1,
  **kwargs: Any,
) -> jax.Array:
  """`lax.conv_general_dilated` of (B, H, W, C), without dilation.

  On a CPU, a 1x1 convolution is a product of matrices: its gradient of the
  kernel is four times as fast. That of a 3x3 kernel on a large map is
  computed by `cpu_products.convolution_3x3`.

  Args:
    x: (B, H, W, C).
    kernel: (height, width, C / groups, D).
    strides: (vertical, horizontal).
    padding: as in `lax.conv_general_dilated`.
    feature_group_count: number of groups.
    **kwargs: its other arguments.

  Returns:
    (B, H', W', D).
  """
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=tuple(strides),
    padding=padding,
    feature_group_count=feature_group_count,
    **kwargs,
  )
  if not on_one_cpu() or feature_group_count > 1:
    return convolve(x, kernel)
  height, width, channels, features = kernel.shape
  around = (
    padding if isinstance(padding, str) else {n for p in padding for n in p}
  )
  if (height, width) == (1, 1) and around in ('SAME', 'VALID', {0}):
    x = x[:, :: strides[0], :: strides[1]]
    y = cpu_products.matmul(
      x.reshape(-1, channels), kernel.reshape(channels, features)
    )
    return y.reshape(*x.shape[:3], features)
  if onednn.is_used(x, kernel):
    pairs = padding
    if isinstance(padding, str):
      pairs = jax.lax.padtype_to_pads(
        x.shape[1:3], (height, width), strides, padding
      )
    pairs = tuple((int(before), int(after)) for before, after in pairs)
    if onednn_convolutions.takes_convolution((height, width), pairs):
      return onednn_convolutions.convolution(x, kernel, tuple(strides), pairs)
  same = around in ('SAME', {1}) and tuple(strides) == (1, 1)
  if (
    (height, width) == (3, 3) and same and x.shape[1] * x.shape[2] >= _POSITIONS
  ):
    return cpu_products.convolution_3x3(x, kernel, convolve)
  return convolve(x, kernel)
