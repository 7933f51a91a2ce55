"""What the compiler for CPUs computes once, and not in every place of use."""

import jax
import jax.numpy as jnp


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
