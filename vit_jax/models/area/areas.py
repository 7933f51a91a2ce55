"""Areas of a grid of tokens."""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Areas:
  """The areas of a memory grid: height outermost, then width, then row-major.

  Attributes:
    memory_shape: (rows, columns) of the grid; (1, S) for a sequence.
    max_area: largest (height, width).
    separate_first: item 0 stands before the grid (a class token) and is the
      first area, alone.

  Raises:
    ValueError: `max_area` is not inside the grid.
  """

  memory_shape: tuple[int, int]
  max_area: tuple[int, int]
  separate_first: bool = False

  def __post_init__(self):
    pairs = zip(self.max_area, self.memory_shape, strict=True)
    if len(self.max_area) != 2 or not all(1 <= a <= m for a, m in pairs):
      raise ValueError(
        f'max_area={self.max_area} does not fit into a memory of '
        f'{self.memory_shape} (rows, columns): give (height, width) of at '
        'least (1, 1) and at most the memory; a sequence is (1, S)'
      )

  @property
  def shapes(self) -> list[tuple[int, int]]:
    """(height, width) of the areas, in order."""
    height, width = self.max_area
    return [(h, w) for h in range(1, height + 1) for w in range(1, width + 1)]

  @property
  def items(self) -> int:
    """S, the number of memory items."""
    return self.separate_first + math.prod(self.memory_shape)

  @functools.cached_property
  def heights(self) -> np.ndarray:
    """(A,) heights of the areas."""
    return self._per_area(lambda h, w: h)

  @functools.cached_property
  def widths(self) -> np.ndarray:
    """(A,) widths of the areas."""
    return self._per_area(lambda h, w: w)

  @property
  def sizes(self) -> np.ndarray:
    """(A,) numbers of items in the areas."""
    return self.heights * self.widths

  def _per_area(self, fn) -> np.ndarray:
    rows, columns = self.memory_shape
    counts = [(rows - h + 1) * (columns - w + 1) for h, w in self.shapes]
    values = np.repeat([fn(h, w) for h, w in self.shapes], counts)
    return np.concatenate([[1], values]) if self.separate_first else values

  def reduce(self, x, fn: Callable, axis: int = -1):
    """Reduces each area's items: `axis` of x goes from S to A entries.

    `fn` gets the list of an area's items, which are shifted slices of x: sums
    carry no error of a running total (0.24 in bfloat16 for an integral image).
    """
    axis %= x.ndim
    rows, columns = self.memory_shape
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    grid = jax.lax.slice_in_dim(
      x, int(self.separate_first), self.items, axis=axis
    )
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    grid = grid.reshape((*before, rows, columns, *after))
    parts = [fn([first])] if self.separate_first else []
    for h, w in self.shapes:
      items = []
      for i, j in np.ndindex(h, w):
        item = jax.lax.slice_in_dim(grid, i, rows - h + 1 + i, axis=axis)
        item = jax.lax.slice_in_dim(item, j, columns - w + 1 + j, axis=axis + 1)
        items.append(item.reshape((*before, -1, *after)))
      parts.append(fn(items))
    return jnp.concatenate(parts, axis=axis)

  def spread(self, x):
    """The adjoint of a sum: (..., A) -> (..., S), each item gets its areas'."""
    items = jax.ShapeDtypeStruct((*x.shape[:-1], self.items), x.dtype)
    return jax.linear_transpose(lambda y: self.reduce(y, sum), items)(x)[0]


def num_areas(
  memory_shape: tuple[int, int],
  max_area: tuple[int, int],
  separate_first: bool = False,
) -> int:
  """Number of areas: 393 for a memory of (1, 197) and areas up to (1, 2)."""
  return len(Areas(memory_shape, max_area, separate_first).sizes)
