"""Resizes position tables as the fine-tuning code of their authors does.

Google's code interpolates linearly with aligned corners, by
`scipy.ndimage.zoom(order=1)`. PyTorch code (DeiT, CeiT, VOLO) uses the bicubic
kernel with a = -0.75, half-pixel centers, clamped edges and no antialiasing.
`jax.image.resize` computes neither of the two.
"""

import numpy as np

from vit_jax.resampling import aligned_matrix, bicubic_matrix

METHODS = {'linear': aligned_matrix, 'bicubic': bicubic_matrix}


def resize_grid(
  grid: np.ndarray, new_grid: tuple[int, int], method: str
) -> np.ndarray:
  """Resizes a grid of embeddings, in float64.

  Args:
    grid: (1, h, w, D).
    new_grid: (h', w').
    method: a key of METHODS: 'linear' (Google) or 'bicubic' (PyTorch).

  Returns:
    (1, h', w', D) of the dtype of `grid`.

  Raises:
    ValueError: unknown method.
  """
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
  """Resizes the embeddings of the patches in a position table.

  Args:
    table: (1, P + h * w, D). The first P embeddings are of other tokens (class
      token, distillation token) and are not changed; those of the patches
      follow row by row.
    old_grid: (h, w).
    new_grid: (h', w').
    method: a key of METHODS: 'linear' (Google) or 'bicubic' (PyTorch).

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
      f'a position table of {table.shape[1]} rows is too short for a grid of '
      f'{h}x{w} patches'
    )
  grid = table[:, prefix:].reshape(1, h, w, -1)
  grid = resize_grid(grid, new_grid, method).reshape(1, new_h * new_w, -1)
  return np.concatenate([table[:, :prefix], grid], axis=1)
