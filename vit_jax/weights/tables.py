"""Fits the position tables of a file to the grid of a model."""

from collections.abc import Iterable
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

# Paths of position tables.
TABLE = re.compile(r'(?:.*/)?(?:pos|row|col)_embedding')
# The largest number of rows before those of the patches: a class token and
# registers, or a class token and a distillation token.
MOST_TOKENS = 17
# The formats of Google's code, which resizes tables linearly.
LINEAR_FORMATS = ('npz', 'big_vision')


class TableFit(NamedTuple):
  """The grids of a position table in a file and in a model.

  Attributes:
    file_grid: (height, width) in patches in the file.
    file_leading: number of the file's rows before those of the patches (class
      token, distillation token).
    grid: (height, width) in patches in the model.
    leading: number of the model's rows before those of the patches.
  """

  file_grid: Grid
  file_leading: int
  grid: Grid
  leading: int


@dataclasses.dataclass(frozen=True)
class Tables:
  """Fits the position tables of one file to a model.

  Attributes:
    model: a Linen module, not scanned.
    fmt: format of the file.
    arrays: {name in this format: array} of the file.
    source_image_size: (height, width) in pixels that the file's tables are for;
      None if it is not known.
  """

  model: nn.Module
  fmt: str
  arrays: Arrays
  source_image_size: Grid | None = None

  @property
  def method(self) -> str:
    """How the code base of the format interpolates: a key of resize.METHODS."""
    google = self.fmt in LINEAR_FORMATS or (
      self.fmt == 'flax' and 'npz' in naming.known_formats(self.model)
    )
    return 'linear' if google else 'bicubic'

  def compare(
    self, table: tuple[int, ...], shape: tuple[int, ...], grid: Grid | None
  ) -> TableFit:
    """Finds the grids of a table in the file and in the model.

    Args:
      table: shape of the file's table, (1, rows, D) or (1, h, w, D).
      shape: shape of the model's table.
      grid: (height, width) of the model's patches; None if it is not known.

    Raises:
      ShapeMismatch: the widths D differ, or the grid of a table is not known.
    """
    if len(table) != len(shape) or table[-1] != shape[-1]:
      raise ShapeMismatch
    if len(shape) == 4:
      return TableFit((table[1], table[2]), 0, (shape[1], shape[2]), 0)
    rows = shape[1]
    if grid is None or not 0 <= rows - math.prod(grid) <= MOST_TOKENS:
      grid = _square(rows, range(3))
      if grid is None:
        raise ShapeMismatch('the grid of the model is not known')
    leading = rows - math.prod(grid)
    file_grid, file_leading = self._file_grid(table[1], grid, leading)
    return TableFit(file_grid, file_leading, grid, leading)

  def _file_grid(self, rows: int, grid: Grid, leading: int) -> tuple[Grid, int]:
    """The grid and the number of leading rows of a table in the file.

    Args:
      rows: number of rows of the file's table.
      grid, leading: those of the model's table.

    Raises:
      ShapeMismatch: the grid is not known.
    """
    if self.source_image_size is not None:
      known = naming.model_shapes(self.model, self.source_image_size)[1]
      if known and 0 <= rows - math.prod(known) <= MOST_TOKENS:
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
    if rows == math.prod(grid):  # DeiT III: the table is for the patches only
      return grid, 0
    raise ShapeMismatch(
      f'{rows} rows are not a square grid and {candidates[0]} leading rows: '
      'give the image size of the file, source_image_size=(height, width)'
    )

  def fit(self, table: np.ndarray, fit: TableFit) -> tuple[np.ndarray, str]:
    """Converts a table of the file to the model's.

    Args:
      table: the file's table, (1, rows, D) or (1, h, w, D).
      fit: the result of `compare`.

    Returns:
      The table for the model, and a note of what was done.
    """
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
      # The file's table is for the patches only. The parameters of the tokens
      # include what a table would add to them, so zeros are added here.
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
  """'14x14' of (14, 14)."""
  return 'x'.join(str(n) for n in grid)


def _square(rows: int, candidates: Iterable[int]) -> Grid | None:
  """The grid of a square table, or None.

  Args:
    rows: number of rows of the table.
    candidates: numbers of leading rows to try, in order.
  """
  for leading in candidates:
    side = math.isqrt(max(rows - leading, 0))
    if side and side * side == rows - leading:
      return side, side
  return None
