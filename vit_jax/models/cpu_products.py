"""Matrix products and 3x3 convolutions on one CPU, with their own gradients.

The values are those of the plain form, up to rounding. Products are those of
oneDNN where `onednn.is_used`. The rest is for the compiler's own products (XLA
of jaxlib 0.10): it computes some of them in one thread, and the gradients of
kernels with their operands in the slower order; docs/performance.md has the
measurements.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from vit_jax.models import onednn, onednn_products


def by_rows(x: jax.Array) -> jax.Array:
  """`x`, in a form that the compiler computes row by row, on all cores.

  A batched matrix product alone is computed in one thread. Together with a
  reduction over its rows, it is computed by all threads, each with some of the
  rows. So the maximum of a row takes part, times zero. Numbers stay as they
  are; in a row with an infinite one or a NaN, some become NaN.

  Args:
    x: (..., N).

  Returns:
    (..., N).
  """
  return x + 0 * x.max(-1, keepdims=True)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The product of two matrices.

  Args:
    x: (N, I).
    kernel: (I, O).

  Returns:
    (N, O).
  """
  if onednn.is_used(x, kernel):
    return onednn_products.product(x, kernel)
  return _matmul(x, kernel)


def _forward(x, kernel):
  # bfloat16 with a float32 result runs on the matrix units of a CPU (AMX), with
  # a bfloat16 result on none.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  y = jnp.matmul(x, kernel, preferred_element_type=wide)
  return y.astype(x.dtype), (x, kernel)


def _backward(kept, g):
  x, kernel = kept
  return g @ kernel.T, _kernel_gradient(x, g)


_matmul = jax.custom_vjp(lambda x, kernel: _forward(x, kernel)[0])
_matmul.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """x^T g, for (N, I) and (N, O).

  Of such products, those whose result is wider than high are up to 1.4 times as
  fast. So a high result is computed as the transpose of a wide one. The
  compiler would exchange the operands again if it saw that, but not behind a
  transposition of three axes.
  """
  inputs, outputs = x.shape[1], g.shape[1]
  if inputs <= outputs or inputs % 2:
    return x.T @ g
  y = (g.T @ x).reshape(outputs, 2, inputs // 2)
  # By rows, so that the result is in memory before the optimizer reads it
  # several times; it would otherwise transpose it each time.
  return by_rows(y.transpose(1, 2, 0).reshape(inputs, outputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution_3x3(
  x: jax.Array, kernel: jax.Array, convolve: Callable[..., jax.Array]
) -> jax.Array:
  """A convolution with stride 1 that keeps height and width.

  The gradient of its kernel is the sum of three matrix products, one for each
  row of the kernel.

  Args:
    x: (B, H, W, C).
    kernel: (3, 3, C, D).
    convolve: (x, kernel) -> the convolution.

  Returns:
    (B, H, W, D).
  """
  return convolve(x, kernel)


def _convolution_backward(convolve, kept, g):
  x, kernel = kept
  (grad_x,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](g)
  height, width, channels = x.shape[1:]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  g = g.reshape(-1, g.shape[-1])

  def row_gradient(row):
    rows = padded[:, row : row + height]
    neighbors = [rows[:, :, column : column + width] for column in range(3)]
    inputs = jnp.concatenate(neighbors, -1).reshape(-1, 3 * channels)
    # (D, 3 C) is faster than (3 C, D), as in `_kernel_gradient`.
    return (g.T @ inputs).reshape(-1, 3, channels)

  rows = jnp.stack([row_gradient(row) for row in range(3)])  # (3, D, 3, C)
  return grad_x, by_rows(rows.transpose(0, 2, 3, 1))


convolution_3x3.defvjp(
  lambda x, kernel, convolve: (convolve(x, kernel), (x, kernel)),
  _convolution_backward,
)
