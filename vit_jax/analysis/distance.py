"""Mean attention distance (arXiv:2010.11929, figure 7), in pixels.

It says from how far away a head collects information in an image, as the
receptive field does for a convolution.
"""

from collections.abc import Sequence
import os

from etils import epath
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure


def patch_distances(
  grid: tuple[int, int], patch_size: float | tuple[float, float]
) -> np.ndarray:
  """Distances between the centers of all pairs of patches, in pixels.

  Args:
    grid: (h, w) of the patches.
    patch_size: pixels between neighboring centers, one number or (vertical,
      horizontal).

  Returns:
    (N, N) for the N = h * w patches, numbered row by row.
  """
  ph, pw = np.broadcast_to(patch_size, 2)
  y, x = np.meshgrid(
    ph * np.arange(grid[0]), pw * np.arange(grid[1]), indexing='ij'
  )
  y, x = y.ravel(), x.ravel()
  return np.hypot(y[:, None] - y[None], x[:, None] - x[None])


def mean_attention_distance(
  attentions: Sequence[np.ndarray],
  grid: tuple[int, int],
  patch_size: float | tuple[float, float],
  num_prefix: int = 0,
) -> np.ndarray:
  """Mean distance from a query patch to the patches that it attends to.

  Args:
    attentions: one (B, H, T, T) per layer.
    grid: (h, w) of the patches.
    patch_size: as in `patch_distances`.
    num_prefix: number of tokens before the patches. They have no position in
      the image, so they are left out as queries and as keys, and the remaining
      probabilities of a query are scaled to sum to one.

  Returns:
    (L, H) in pixels, the mean over images and query patches.

  Raises:
    ValueError: the maps do not have as many patches as the grid.
  """
  pixels = patch_distances(grid, patch_size)
  result = []
  for a in attentions:
    a = np.asarray(a, np.float64)[:, :, num_prefix:, num_prefix:]
    if a.shape[-1] != len(pixels):
      raise ValueError(
        f'{a.shape[-1]} patch tokens do not fit a grid of {grid[0]}x{grid[1]}: '
        'check grid and num_prefix'
      )
    total = a.sum(axis=-1)
    distance = (a * pixels[None, None]).sum(axis=-1)
    distance = np.divide(
      distance, total, where=total != 0, out=np.zeros_like(distance)
    )
    result.append(distance.mean(axis=(0, 2)))
  return np.stack(result)


def uniform_distance(
  grid: tuple[int, int], patch_size: float | tuple[float, float]
) -> float:
  """The mean attention distance of uniform attention, for comparison.

  Args:
    grid, patch_size: as in `patch_distances`.

  Returns:
    The distance in pixels.
  """
  return float(patch_distances(grid, patch_size).mean())


def plot_distance(
  distances: np.ndarray,
  path: str | os.PathLike,
  *,
  uniform: float | None = None,
  title: str = '',
) -> epath.Path:
  """Draws a point for each head of each layer, and the mean of each layer.

  Args:
    distances: (L, H), the result of `mean_attention_distance`.
    path: PNG file to write.
    uniform: the result of `uniform_distance`, drawn as a line; None for no
      line.
    title: title of the plot, such as the model's name.

  Returns:
    The path.
  """
  distances = np.asarray(distances)
  layers, heads = distances.shape
  figure = new_figure(6.4, 4.2)
  axis = figure.subplots()
  x = np.arange(1, layers + 1)
  for head in range(heads):
    axis.scatter(
      x,
      distances[:, head],
      s=22,
      alpha=0.75,
      color=f'C{head % 10}',
      linewidths=0,
      label=f'head {head + 1}' if heads <= 8 else None,
    )
  axis.plot(
    x, distances.mean(axis=1), color='black', lw=1.2, label='mean of heads'
  )
  if uniform is not None:
    axis.axhline(
      uniform, color='gray', ls='--', lw=1, label='uniform attention'
    )
  axis.set_xlabel('layer')
  axis.set_ylabel('mean attention distance (pixels)')
  axis.set_ylim(bottom=0)
  axis.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore
  axis.set_title(title)
  axis.grid(alpha=0.25)
  axis.legend(
    fontsize=8, frameon=False, loc='center left', bbox_to_anchor=(1.0, 0.5)
  )
  return save_figure(figure, path)
