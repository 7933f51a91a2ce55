"""Resizing of position tables, as each source family does it, in numpy.

None of them is what `jax.image.resize` computes: Google's code interpolates
linearly with aligned corners (`scipy.ndimage.zoom(order=1)`), PyTorch code
(DeiT, CeiT, VOLO) with the bicubic kernel of a = -0.75, half-pixel centers,
clamped edges and no antialiasing.
"""

import numpy as np

from vit_jax.resampling import aligned_matrix, bicubic_matrix

METHODS = {'linear': aligned_matrix, 'bicubic': bicubic_matrix}


def resize_grid(
  grid: np.ndarray, new_grid: tuple[int, int], method: str
) -> np.ndarray:
  """(1, h, w, D) -> (1, h', w', D), separable; float64 inside."""
  if method not in METHODS:
    raise ValueError(f'method={method!r}; allowed: {", ".join(METHODS)}')
  matrix = METHODS[method]
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
  table: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: str,
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
