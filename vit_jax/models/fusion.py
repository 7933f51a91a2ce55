"""Forms of programs that the compiler for CPUs computes faster."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.models.platform import target_platform


def stored(x: jax.Array) -> jax.Array:
  """x, which is in memory before it is used.

  The compiler computes a cheap array again in each operation that uses it. That
  is slow where it reads another array in a bad order, or many times. An
  `optimization_barrier` does not prevent it, because it is gone before
  operations are fused. But nothing is fused across a conditional. The condition
  of this one always holds, which the compiler does not know.

  Args:
    x: any shape and dtype of numbers.

  Returns:
    x.
  """
  true = jax.lax.optimization_barrier(jnp.array(True))
  return jax.lax.cond(true, lambda x: x, jnp.negative, x)


def row_products(a: jax.Array, b: jax.Array) -> jax.Array:
  """The sums over the last axis of a * b, for a CPU.

  They are products of a row and a column. The compiler's own sum of a product
  takes five times as long if the first axis has length 1, as that of one image
  has (jaxlib 0.10).

  Args:
    a, b: (..., N).

  Returns:
    (..., 1), in float32 or a wider dtype of a or b.
  """
  wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  return jnp.einsum('...n,...n->...', a.astype(wide), b.astype(wide))[..., None]


def apart(x: jax.Array, uses: int) -> tuple[jax.Array, ...]:
  """x for several uses, which share no operation with each other, on a CPU.

  A sum of an array of bfloat16 converts its entries while it adds them. If the
  compiler finds the same conversion elsewhere, it stores the converted array
  for both, which takes ten times as long as the sum.

  Args:
    x: any shape and dtype.
    uses: how many.

  Returns:
    x, as often as it is used.
  """
  several = (x,) * uses
  if target_platform() != 'cpu':
    return several
  # One barrier for all: the compiler would take two for the same.
  return jax.lax.optimization_barrier(several)


def moved(move: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """`move(x)`, for a function that copies entries of an array and adds zeros.

  The compiler has no operation that joins arrays of bfloat16: it converts them
  to float32 before, and back after. Those of integers it copies as they are.

  Args:
    move: a linear function, such as a slice, a concatenation or a padding with
      zeros, for arrays of any dtype.
    x: any shape and dtype.

  Returns:
    The result of `move`, with its derivatives.
  """
  if x.dtype != jnp.bfloat16:
    return move(x)

  @jax.custom_jvp
  def of_integers(x):
    y = move(jax.lax.bitcast_convert_type(x, jnp.uint16))
    return jax.lax.bitcast_convert_type(y, x.dtype)

  # An integer has no derivative.
  of_integers.defjvp(lambda x, dx: (of_integers(*x), move(*dx)))
  return of_integers(x)
