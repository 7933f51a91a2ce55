"""Principal components of the patch embedding (arXiv:2010.11929, figure 7)."""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure


def find_kernel(variables: Mapping[str, Any]) -> np.ndarray:
  """The kernel (h, w, 3, D) of the convolution that a model applies to images.

  Args:
    variables: variables of the model.

  Raises:
    ValueError: no kernel has three input channels.
  """
  flat = flatten_dict(variables['params'], sep='/')
  for path in sorted(flat, key=lambda p: (p.count('/'), p)):
    shape = tuple(getattr(flat[path], 'shape', ()))
    if path.endswith('kernel') and len(shape) == 4 and shape[2] == 3:
      return np.asarray(flat[path])
  raise ValueError('the model has no convolution of RGB images')


def filter_components(
  kernel: np.ndarray, count: int = 28
) -> tuple[np.ndarray, np.ndarray]:
  """Principal components of the filters of a patch embedding.

  Args:
    kernel: (h, w, C, D), D filters.
    count: number of components, at most min(D, h * w * C).

  Returns:
    The orthonormal components (count, h, w, C), and the share of the filters'
    variance that each explains (count,), in descending order.
  """
  h, w, channels, _ = np.shape(kernel)
  filters = np.asarray(kernel, np.float64).reshape(h * w * channels, -1).T
  filters = filters - filters.mean(axis=0, keepdims=True)
  _, values, components = np.linalg.svd(filters, full_matrices=False)
  variance = values**2
  shares = variance / max(variance.sum(), np.finfo(float).tiny)
  return (components[:count].reshape(-1, h, w, channels), shares[:count])


def smoothness(components: np.ndarray) -> float:
  """The correlation of neighboring pixels in components (n, h, w, C).

  It is about 0 for filters of random numbers, as an untrained model has, and
  about 1 for smooth ones. The mean is over the components, each of which has
  the same sum of squares.
  """
  x = np.asarray(components, np.float64)
  pairs = [(x[:, 1:], x[:, :-1]), (x[:, :, 1:], x[:, :, :-1])]
  pairs = [(a, b) for a, b in pairs if a.size]
  values = [
    (a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-30)
    for a, b in pairs
  ]
  return float(np.mean(values)) if values else 0.0


def why_nothing_to_see(components: np.ndarray, shares: np.ndarray) -> str:
  """Why a picture of components has no shapes; '' if it may have some.

  Args:
    components: (n, h, w, 3), from `filter_components`.
    shares: (n,), from `filter_components`.
  """
  height, width = components.shape[1:3]
  if not shares.any():
    return 'all filters are equal: there is nothing to see'
  if height * width <= 4:
    return f'filters of {height} x {width} pixels are too small to show shapes'
  # Filters of a long training are smooth or have stripes: a ViT-S/14 has 0.36.
  # Components without variance are arbitrary.
  if abs(smoothness(components[shares > 1e-3])) < 0.2:
    return (
      'there is little to see: neighboring pixels are hardly correlated, as in '
      'a model that was trained for a short time'
    )
  return ''


def to_rgb(components: np.ndarray) -> np.ndarray:
  """Scales each component (n, h, w, 3) to [0, 1]; 0 becomes 0.5, a gray."""
  components = np.asarray(components)
  largest = np.abs(components).max(axis=(1, 2, 3), keepdims=True)
  largest = np.where(largest > 0, largest, 1)
  return 0.5 + 0.5 * components / largest


def plot_filters(
  components: np.ndarray,
  path: str | os.PathLike,
  *,
  shares: np.ndarray | None = None,
  title: str = '',
) -> epath.Path:
  """Draws components as RGB tiles with their shares of the variance.

  Args:
    components: (n, h, w, 3), from `filter_components`.
    path: PNG file to write.
    shares: (n,), from `filter_components`; written above the tiles in percent.
    title: title of the plot, such as the model's name.

  Returns:
    The path.
  """
  tiles = to_rgb(components)
  columns = min(7, len(tiles))
  rows = -(-len(tiles) // columns)
  figure = new_figure(1.0 * columns + 0.3, 1.18 * rows + 0.7)
  axes = figure.subplots(rows, columns, squeeze=False)
  for i, axis in enumerate(axes.flat):
    axis.axis('off')
    if i < len(tiles):
      axis.imshow(tiles[i], interpolation='nearest')
      share = '' if shares is None else f': {100 * shares[i]:.1f} %'
      axis.set_title(f'{i + 1}{share}', fontsize=7, pad=2)
  figure.suptitle(
    title
    or 'Principal components of the embedding filters (share of variance)',
    fontsize=9,
  )
  return save_figure(figure, path)
