"""Resizing of position tables, as each source family does it, in numpy.

None of them is what `jax.image.resize` computes: Google's code interpolates
linearly with aligned corners (`scipy.ndimage.zoom(order=1)`), PyTorch code
(DeiT, CeiT, VOLO) with the bicubic kernel of a = -0.75, half-pixel centres,
clamped edges and no antialiasing.
"""

import numpy as np

METHODS = ('linear', 'bicubic')


def linear_matrix(old: int, new: int) -> np.ndarray:
  """Aligned corners: (new, old) weights, first and last rows are copies."""
  position = np.linspace(0.0, old - 1.0, new) if new > 1 else np.zeros(1)
  low = np.minimum(np.floor(position).astype(int), max(old - 2, 0))
  high = np.minimum(low + 1, old - 1)
  fraction = position - low
  matrix = np.zeros((new, old))
  np.add.at(matrix, (np.arange(new), low), 1.0 - fraction)
  np.add.at(matrix, (np.arange(new), high), fraction)
  return matrix


def bicubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
  """Keys' kernel (1981), half-pixel centres, clamped: (new, old) weights."""
  position = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(position).astype(int)
  matrix = np.zeros((new, old))
  for tap in (-1, 0, 1, 2):
    x = np.abs(position - (first + tap))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    index = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), np.where(x <= 1, near, far))
  return matrix


def resize_grid(grid, new_grid: tuple[int, int], method: str) -> np.ndarray:
  """(1, h, w, D) -> (1, h', w', D), separable; float64 inside."""
  if method not in METHODS:
    raise ValueError(f'method={method!r}; allowed: {", ".join(METHODS)}')
  matrix = linear_matrix if method == 'linear' else bicubic_matrix
  rows = matrix(grid.shape[1], new_grid[0])
  columns = matrix(grid.shape[2], new_grid[1])
  out = np.einsum(
    'yh,xw,bhwd->byxd',
    rows,
    columns,
    np.asarray(grid, np.float64),
    optimize=True,
  )
  return out.astype(np.asarray(grid).dtype)


def resize_table(
  table, old_grid: tuple[int, int], new_grid: tuple[int, int], method: str
) -> np.ndarray:
  """Resizes the grid part of a position table.

  Args:
    table: (1, P + h * w, D), rows first; P leading rows (class and
      distillation token) are copied unchanged.
    old_grid: (h, w).
    new_grid: (h', w').
    method: 'linear' (Google files) or 'bicubic' (PyTorch files).

  Returns:
    (1, P + h' * w', D) of the dtype of `table`.

  Raises:
    ValueError: unknown method, or fewer rows than `old_grid` has cells.
  """
  table = np.asarray(table)
  (h, w), (new_h, new_w) = old_grid, new_grid
  prefix = table.shape[1] - h * w
  if prefix < 0:
    raise ValueError(
      f'a position table of {table.shape[1]} rows has no {h}x{w} grid'
    )
  grid = table[:, prefix:].reshape(1, h, w, -1)
  grid = resize_grid(grid, new_grid, method).reshape(1, new_h * new_w, -1)
  return np.concatenate([table[:, :prefix], grid], axis=1)
