"""Maximum pooling, with a gradient of its own on a CPU."""

from collections.abc import Sequence
import functools
import itertools
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.fusion import stored
from vit_jax.models.platform import target_platform


def max_pool(
  x: jax.Array,
  window: tuple[int, int],
  strides: tuple[int, int],
  padding: str | Sequence[tuple[int, int]] = 'VALID',
) -> jax.Array:
  """`flax.linen.max_pool` of maps.

  The gradient of a maximum belongs to the first entry of its window that has
  it, as in PyTorch.

  Args:
    x: (B, H, W, C).
    window: height and width of the windows.
    strides: (vertical, horizontal).
    padding: 'SAME', 'VALID', or how many entries of -inf are (before, after)
      rows and columns.

  Returns:
    (B, H', W', C).
  """
  pads: Any = padding
  if target_platform() != 'cpu':
    return nn.max_pool(x, window, strides, pads)
  if isinstance(padding, str):
    pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  pads = tuple((int(before), int(after)) for before, after in pads)
  return cast(jax.Array, _max_pool_on_cpu(x, window, strides, pads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_on_cpu(x, window, strides, pads):
  """The maximum of shifted arrays; the compiler's own takes twice as long."""
  entries = _entries(x, window, strides, pads)
  return functools.reduce(jnp.maximum, entries.values())


def _entries(x, window, strides, pads):
  """The entries of all windows, by their (row, column) in a window.

  Each is (B, H', W', C), as the result.
  """
  lowest: Any = -jnp.inf
  x = jnp.pad(
    x, ((0, 0), *pads, (0, 0)), constant_values=jnp.asarray(lowest, x.dtype)
  )
  height, width = (
    (n - k) // s + 1
    for n, k, s in zip(x.shape[1:3], window, strides, strict=True)
  )
  return {
    (row, column): x[
      :,
      row : row + height * strides[0] : strides[0],
      column : column + width * strides[1] : strides[1],
    ]
    for row, column in itertools.product(range(window[0]), range(window[1]))
  }


def _forward(x, window, strides, pads):
  y = _max_pool_on_cpu(x, window, strides, pads)
  return y, (x, y)


def _backward(window, strides, pads, kept, g):
  """The gradient as sums of shifted arrays.

  The compiler would write an index of every entry of x, and scatter by it.
  """
  x, y = kept
  entries = _entries(x, window, strides, pads)
  # The number of the first entry of each window that has its maximum.
  first = jnp.full(y.shape, len(entries), jnp.int16)
  for i, entry in reversed(list(enumerate(entries.values()))):
    first = jnp.where(entry == y, i, first)
  # Sums of bfloat16 take seven times as long as those of float32.
  g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
  # Each is used once for every entry of a window, and computed only once.
  first, g = stored(first), stored(g)
  # Every stride-th row and column of the padded map gets its own sum. An entry
  # is at the same offset, up to a multiple of the stride, in all windows that
  # it belongs to.
  rows, columns = (
    -(-(n + sum(pad)) // s)
    for n, pad, s in zip(x.shape[1:3], pads, strides, strict=True)
  )
  sums = {}
  for i, (row, column) in enumerate(entries):
    part = jnp.where(first == i, g, 0)
    down, right = row // strides[0], column // strides[1]
    part = jnp.pad(
      part,
      (
        (0, 0),
        (down, rows - down - y.shape[1]),
        (right, columns - right - y.shape[2]),
        (0, 0),
      ),
    )
    key = row % strides[0], column % strides[1]
    sums[key] = sums[key] + part if key in sums else part
  nothing = jnp.zeros((x.shape[0], rows, columns, x.shape[3]), g.dtype)
  whole = jnp.stack(
    [
      jnp.stack(
        [sums.get((row, column), nothing) for column in range(strides[1])], 3
      )
      for row in range(strides[0])
    ],
    2,
  )  # (B, rows, stride, columns, stride, C)
  whole = whole.reshape(
    x.shape[0], rows * strides[0], columns * strides[1], x.shape[3]
  )
  (top, _), (left, _) = pads
  whole = whole[:, top : top + x.shape[1], left : left + x.shape[2]]
  # A conversion in the same operation as the joins would be slow again.
  return (stored(whole).astype(x.dtype),)


_max_pool_on_cpu.defvjp(_forward, _backward)
