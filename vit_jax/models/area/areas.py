"""The areas of a grid of items (arXiv:1810.10126, section 3.1)."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Areas:
  """All rectangles of at most `max_area` items in a memory of items.

  Areas are ordered by shape, height outermost, then width; areas of one shape
  are in row-major order. A is their number, S that of the items.

  Attributes:
    memory_shape: (rows, columns) of the grid; (1, S) for a sequence.
    max_area: (height, width) of the largest area.
    separate_first: whether item 0 is not in the grid, such as a class token. It
      is then an area by itself, the first of all areas.

  Raises:
    ValueError: `max_area` does not fit into the grid.
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
    return self._per_area([height for height, _ in self.shapes])

  @functools.cached_property
  def widths(self) -> np.ndarray:
    """(A,) widths of the areas."""
    return self._per_area([width for _, width in self.shapes])

  @property
  def sizes(self) -> np.ndarray:
    """(A,) numbers of items in the areas."""
    return self.heights * self.widths

  def _per_area(self, per_shape: Sequence[int]) -> np.ndarray:
    rows, columns = self.memory_shape
    counts = [(rows - h + 1) * (columns - w + 1) for h, w in self.shapes]
    values = np.repeat(per_shape, counts)
    return np.concatenate([[1], values]) if self.separate_first else values

  def reduce(
    self,
    x: jax.Array,
    fn: Callable[[Sequence[jax.Array]], jax.Array],
    axis: int = -1,
  ) -> jax.Array:
    """Reduces the items of each area to one value.

    The items at one offset in all areas of one shape are a shifted slice of x,
    so `fn` gets one slice for each offset. Sums of slices are exact up to their
    own rounding. Differences of an integral image, the usual way, have the
    rounding error of its running total (0.24 in bfloat16).

    Args:
      x: any array; `axis` has S entries.
      fn: maps the list of an area's items to their reduction, element-wise.
      axis: of the items.

    Returns:
      x with A entries in `axis`.
    """
    axis %= x.ndim
    rows, columns = self.memory_shape
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    grid = jax.lax.slice_in_dim(
      x, int(self.separate_first), self.items, axis=axis
    )
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    grid = grid.reshape((*before, rows, columns, *after))
    reduced = [fn([first])] if self.separate_first else []
    for h, w in self.shapes:
      items = []
      for i, j in np.ndindex(h, w):
        item = jax.lax.slice_in_dim(grid, i, rows - h + 1 + i, axis=axis)
        item = jax.lax.slice_in_dim(item, j, columns - w + 1 + j, axis=axis + 1)
        items.append(item.reshape((*before, -1, *after)))
      reduced.append(fn(items))
    return jnp.concatenate(reduced, axis=axis)

  def spread(self, x: jax.Array | np.ndarray) -> jax.Array:
    """Sums, for each item, over the areas that contain it.

    This is the adjoint of the sum over the items of each area.

    Args:
      x: (..., A), one value per area.

    Returns:
      (..., S).
    """
    items = jax.ShapeDtypeStruct((*x.shape[:-1], self.items), x.dtype)
    add = lambda y: self.reduce(y, sum)  # pyright: ignore[reportArgumentType]
    return jax.linear_transpose(add, items)(x)[0]


def num_areas(
  memory_shape: tuple[int, int],
  max_area: tuple[int, int],
  separate_first: bool = False,
) -> int:
  """The number of areas A; see `Areas` for the arguments.

  A sequence of 197 tokens with areas of at most two neighbors, which is a
  memory of (1, 197) and a largest area of (1, 2), has 393 areas.
  """
  return len(Areas(memory_shape, max_area, separate_first).sizes)
