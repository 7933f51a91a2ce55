"""Position tables of files, on the grid of a model."""

import dataclasses
import math
import re
from typing import NamedTuple

from flax import linen as nn
import numpy as np

from vit_jax.weights import naming
from vit_jax.weights.detection import Arrays
from vit_jax.weights.resize import resize_grid, resize_table
from vit_jax.weights.rules import ShapeMismatch

Grid = tuple[int, int]

TABLE = re.compile(r'(?:.*/)?(?:pos|row|col)_embedding')
# Formats whose position tables Google's code resizes; others are PyTorch's.
LINEAR_FORMATS = ('npz', 'big_vision')


class TableFit(NamedTuple):
  """The grids of a table in a file and in a model, in patches."""

  file_grid: Grid
  file_leading: int  # rows before the patches: class and distillation token
  grid: Grid
  leading: int


@dataclasses.dataclass(frozen=True)
class Tables:
  """Fits the position tables of one file to a model.

  Attributes:
    model: a Linen module with its blocks one by one.
    fmt: format of the file.
    arrays: the file's arrays under the names of that format.
    source_image_size: (height, width) that the file's tables are for, None if
      it is not known.
  """

  model: nn.Module
  fmt: str
  arrays: Arrays
  source_image_size: Grid | None = None

  @property
  def method(self) -> str:
    """How the code base of the format interpolates, see `resize`."""
    google = self.fmt in LINEAR_FORMATS or (
      self.fmt == 'flax' and 'npz' in naming.known_formats(self.model)
    )
    return 'linear' if google else 'bicubic'

  def compare(
    self, table: tuple[int, ...], shape: tuple[int, ...], grid: Grid | None
  ) -> TableFit:
    """The grid of a file's table and that of a model's.

    Args:
      table: shape of the file's, (1, rows, D) or (1, h, w, D).
      shape: of the model's.
      grid: (height, width) of the model's patches, None if it is not known.

    Raises:
      ShapeMismatch: another width, or the grid of a table is not known.
    """
    if len(table) != len(shape) or table[-1] != shape[-1]:
      raise ShapeMismatch
    if len(shape) == 4:
      return TableFit((table[1], table[2]), 0, (shape[1], shape[2]), 0)
    rows = shape[1]
    if grid is None or not 0 <= rows - math.prod(grid) <= 2:
      grid = _square(rows, range(3))
      if grid is None:
        raise ShapeMismatch('the grid of the model is not known')
    leading = rows - math.prod(grid)
    file_grid, file_leading = self._file_grid(table[1], grid, leading)
    return TableFit(file_grid, file_leading, grid, leading)

  def _file_grid(self, rows: int, grid: Grid, leading: int) -> tuple[Grid, int]:
    """Grid and leading rows of a table of the file with this many rows."""
    if self.source_image_size is not None:
      known = naming.model_shapes(self.model, self.source_image_size)[1]
      if known is not None and 0 <= rows - math.prod(known) <= 2:
        return known, rows - math.prod(known)
    tokens = sum(
      any(name in self.arrays for name in names)
      for names in (('cls', 'cls_token'), ('dist_token',))
    )
    if self.fmt == 'big_vision':
      candidates = [0]
    else:
      candidates = [leading] + [tokens] * (tokens > leading)
    for file_leading in candidates:
      if rows - file_leading == math.prod(grid):
        return grid, file_leading
      if square := _square(rows, [file_leading]):
        return square, file_leading
    if rows == math.prod(grid):  # DeiT III: the table is of the patches only
      return grid, 0
    raise ShapeMismatch(
      f'{rows} rows are no square grid after {candidates[0]} leading rows: '
      'say the image size of the file, source_image_size=(height, width)'
    )

  def fit(self, table: np.ndarray, fit: TableFit) -> tuple[np.ndarray, str]:
    """The file's table on the model's grid, and what was done, for people."""
    notes = []
    if fit.file_grid != fit.grid:
      notes.append(f'{_by(fit.file_grid)} -> {_by(fit.grid)}, {self.method}')
    if table.ndim == 4:
      if notes:
        table = resize_grid(table, fit.grid, self.method)
      return table, ''.join(notes)
    if notes:
      table = resize_table(table, fit.file_grid, fit.grid, self.method)
    first = table[:, : min(fit.leading, fit.file_leading)]
    if fit.file_leading < fit.leading:
      # The file adds its table to the patches only, so its leading tokens
      # already contain whatever is added for their position.
      missing = fit.leading - fit.file_leading
      zeros = np.zeros((1, missing, table.shape[-1]), table.dtype)
      first = np.concatenate([first, zeros], axis=1)
      notes.append('zero row for the class token')
    elif fit.file_leading > fit.leading:
      notes.append(f'{fit.file_leading - fit.leading} leading rows left out')
    if fit.file_leading != fit.leading:
      table = np.concatenate([first, table[:, fit.file_leading :]], axis=1)
    return table, ', '.join(notes)


def _by(grid: Grid) -> str:
  return 'x'.join(str(n) for n in grid)


def _square(rows: int, candidates) -> Grid | None:
  """The grid of a square table after one of some numbers of leading rows."""
  for leading in candidates:
    side = math.isqrt(max(rows - leading, 0))
    if side and side * side == rows - leading:
      return side, side
  return None
