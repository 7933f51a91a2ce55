"""Queries, keys and values with which the forms of attention are compared."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def operands(shape: Sequence[int], dtype: Any) -> list[jax.Array]:
  """Queries, keys, values, and a gradient of the output.

  Args:
    shape: numbers of examples, queries, keys and heads, widths of a key and of
      a value.
    dtype: of all four.
  """
  b, t, s, h, k, v = shape
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = ((b, t, h, k), (b, s, h, k), (b, s, h, v), (b, t, h, v))
  return [
    (3 * jax.random.normal(*x)).astype(dtype)
    for x in zip(keys, shapes, strict=True)
  ]


def with_gradients(
  attend: Callable[..., jax.Array],
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  g: jax.Array,
) -> tuple[jax.Array, ...]:
  """The output of `attend`, and the gradients of q, k and v for its g."""
  y, backward = jax.vjp(attend, q, k, v)
  return y, *backward(g)
