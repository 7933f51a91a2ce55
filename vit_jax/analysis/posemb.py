"""Similarity of position embeddings (arXiv:2010.11929, figure 7)."""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure


def find_table(variables: Mapping[str, Any]) -> np.ndarray:
  """The first learned position table of a model, with a row for each token.

  Args:
    variables: variables of the model.

  Returns:
    (T, D).

  Raises:
    ValueError: the model has no such table, because its position embedding is
      sine-cosine, relative or none.
  """
  flat = flatten_dict(variables['params'], sep='/')
  for path in sorted(flat, key=lambda p: p.count('/')):
    if path.rpartition('/')[2] == 'pos_embedding':
      table = np.asarray(flat[path])
      return table.reshape(-1, table.shape[-1])
  raise ValueError('the model has no learned position table (pos_embedding)')


def position_similarity(
  table: np.ndarray, grid: tuple[int, int], num_prefix: int = 0
) -> np.ndarray:
  """Cosine similarity of every pair of patch positions.

  Args:
    table: (T, D) or (1, T, D).
    grid: (h, w) of the patches.
    num_prefix: number of rows before those of the patches, which are left out.

  Returns:
    (h, w, h, w), in which [i, j] is the map of similarities to patch (i, j).

  Raises:
    ValueError: the table does not have as many rows as the grid.
  """
  table = np.asarray(table, np.float64).reshape(-1, np.shape(table)[-1])
  patches = table[num_prefix:]
  if len(patches) != grid[0] * grid[1]:
    raise ValueError(
      f'{len(patches)} rows after the first {num_prefix} do not fit a grid of '
      f'{grid[0]}x{grid[1]} patches: check grid and num_prefix'
    )
  norm = np.linalg.norm(patches, axis=-1, keepdims=True)
  patches = np.divide(patches, norm, where=norm > 0, out=np.zeros_like(patches))
  return (patches @ patches.T).reshape(*grid, *grid)


def locality(similarity: np.ndarray) -> float:
  """How much more similar neighbors are than other positions.

  Args:
    similarity: (h, w, h, w), from `position_similarity`.

  Returns:
    The mean similarity of horizontal and vertical neighbors, minus the mean of
    all pairs of different positions. It is about 0 for a random table.
  """
  h, w = similarity.shape[:2]
  rows, columns = np.indices((h, w)).reshape(2, -1)
  steps = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
  flat = similarity.reshape(h * w, h * w)
  if not (steps == 1).any():
    return 0.0
  return float(flat[steps == 1].mean() - flat[steps > 0].mean())


def plot_similarity(
  similarity: np.ndarray,
  path: str | os.PathLike,
  *,
  most: int = 16,
  title: str = '',
) -> epath.Path:
  """Draws a map for each patch, at the position of the patch in the grid.

  Args:
    similarity: (h, w, h, w), from `position_similarity`.
    path: PNG file to write.
    most: largest number of rows and of columns of maps. For a larger grid, only
      every second patch is drawn, or every third, and so on.
    title: title of the plot, such as the model's name.

  Returns:
    The path.
  """
  h, w = similarity.shape[:2]
  rows, columns = (np.arange(0, n, -(-n // most)) for n in (h, w))
  gap = 1
  tiles = np.full(
    (len(rows) * (h + gap) - gap, len(columns) * (w + gap) - gap), np.nan
  )
  for a, i in enumerate(rows):
    for b, j in enumerate(columns):
      y, x = a * (h + gap), b * (w + gap)
      tiles[y : y + h, x : x + w] = similarity[i, j]
  figure = new_figure(7, 6.2 * len(rows) / len(columns))
  axis = figure.subplots()
  # The similarity of a position to itself is always 1, so the range of colors
  # is chosen for the others.
  others = similarity.reshape(h * w, h * w)[~np.eye(h * w, dtype=bool)]
  low, high = np.quantile(others, [0.001, 0.999]) if others.size else (-1, 1)
  shown = axis.imshow(
    tiles, cmap='viridis', vmin=low, vmax=high, interpolation='nearest'
  )
  for ticks, labels, n, indices in (
    (axis.set_xticks, axis.set_xticklabels, w, columns),
    (axis.set_yticks, axis.set_yticklabels, h, rows),
  ):
    ticks([a * (n + gap) + (n - 1) / 2 for a in range(len(indices))])
    labels([str(i + 1) for i in indices], fontsize=8)
  axis.tick_params(length=0)
  for side in axis.spines.values():
    side.set_visible(False)
  axis.set_xlabel('patch column')
  axis.set_ylabel('patch row')
  axis.set_title(title)
  figure.colorbar(
    shown, ax=axis, label='cosine similarity', shrink=0.85, extend='max'
  )
  return save_figure(figure, path)
