"""Similarity of the attention maps of layers (DeepViT, arXiv:2103.11886).

A column of an attention map has the probabilities that all queries give to one
token t. Equation 3 compares layers p and q by the cosine similarity of their
columns: M[p, q][h, t] = cos(A_p[h, :, t], A_q[h, :, t]) for head h. In deep
ViTs it approaches one, which the paper calls attention collapse.
"""

from collections.abc import Callable, Mapping, Sequence
import os

from etils import epath
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure


def _columns(attention: np.ndarray) -> np.ndarray:
  """Scales every column (one key, all queries) of (B, H, T, T) to length 1."""
  a = np.asarray(attention, np.float64)
  norm = np.linalg.norm(a, axis=2, keepdims=True)
  return np.divide(a, norm, where=norm > 0, out=np.zeros_like(a))


def token_similarity(p: np.ndarray, q: np.ndarray) -> np.ndarray:
  """M[p, q] of equation 3.

  Args:
    p, q: maps of two layers, (B, H, T, T).

  Returns:
    (B, H, T).

  Raises:
    ValueError: the maps have different shapes.
  """
  if np.shape(p) != np.shape(q):
    raise ValueError(
      f'attention maps of different shapes {np.shape(p)} and '
      f'{np.shape(q)} cannot be compared'
    )
  return (_columns(p) * _columns(q)).sum(axis=2)


def layer_similarity(attentions: Sequence[np.ndarray]) -> np.ndarray:
  """The mean of M over images, heads and tokens, for every pair of layers.

  Args:
    attentions: one (B, H, T, T) per layer, all of the same shape.

  Returns:
    (L, L).

  Raises:
    ValueError: the maps have different shapes.
  """
  return _pairs(attentions, lambda m: float(np.mean(m)))


def similar_ratio(
  attentions: Sequence[np.ndarray], threshold: float = 0.5
) -> np.ndarray:
  """The share of entries of M above a threshold, for every pair of layers.

  Args:
    attentions: one (B, H, T, T) per layer, all of the same shape.
    threshold: the threshold.

  Returns:
    (L, L).

  Raises:
    ValueError: the maps have different shapes.
  """
  return _pairs(attentions, lambda m: float(np.mean(m > threshold)))


def _pairs(
  attentions: Sequence[np.ndarray], reduce: Callable[[np.ndarray], float]
) -> np.ndarray:
  """`reduce(M)` for every pair of layers, (L, L)."""
  count = len(attentions)
  result = np.empty((count, count))
  columns = [_columns(a).astype(np.float32) for a in attentions]
  for p in range(count):
    for q in range(p, count):
      if columns[p].shape != columns[q].shape:
        raise ValueError(
          f'layers {p} and {q} have maps of different shapes '
          f'{columns[p].shape} and {columns[q].shape}'
        )
      m = np.einsum('bhst,bhst->bht', columns[p], columns[q], dtype=np.float64)
      result[p, q] = result[q, p] = reduce(m)
  return result


def adjacent_similarity(similarity: np.ndarray) -> np.ndarray:
  """The similarity of each layer to the previous one: (L, L) -> (L - 1,)."""
  return np.diagonal(np.asarray(similarity), offset=1).copy()


def similar_blocks(similarity: np.ndarray, threshold: float = 0.9) -> float:
  """The share of blocks that are similar to the previous one (figure 3b).

  Args:
    similarity: (L, L), from `layer_similarity` or `similar_ratio`.
    threshold: blocks with a larger similarity are counted as similar.
  """
  similarity = np.asarray(similarity)
  return float(
    np.sum(adjacent_similarity(similarity) > threshold) / len(similarity)
  )


def head_similarity(attentions: Sequence[np.ndarray]) -> np.ndarray:
  """The mean cosine similarity of the heads of a layer (figure 3c).

  Args:
    attentions: one (B, H, T, T) per layer.

  Returns:
    (L,), the mean over all pairs of different heads; NaN for a layer with one
    head.
  """
  result = []
  for a in attentions:
    columns = _columns(a)
    heads = columns.shape[1]
    m = np.einsum('bhst,bgst->hg', columns, columns)
    m /= columns.shape[0] * columns.shape[-1]
    pairs = heads * (heads - 1)
    result.append((m.sum() - np.trace(m)) / pairs if pairs else np.nan)
  return np.asarray(result)


def plot_layers(
  similarity: np.ndarray, path: str | os.PathLike, *, title: str = ''
) -> epath.Path:
  """Draws the (L, L) similarity of every pair of layers; returns the path."""
  similarity = np.asarray(similarity)
  figure = new_figure(5.8, 4.8)
  axis = figure.subplots()
  count = len(similarity)
  edge = (0.5, count + 0.5)
  others = similarity[~np.eye(count, dtype=bool)]
  # A layer is equal to itself, so the range of colors is that of the others.
  low, high = (others.min(), others.max()) if others.size else (0.0, 1.0)
  shown = axis.imshow(
    similarity,
    cmap='viridis',
    vmin=low,
    vmax=max(high, low + 1e-6),
    origin='lower',
    extent=(*edge, *edge),
  )
  for which in (axis.xaxis, axis.yaxis):
    which.get_major_locator().set_params(integer=True)  # pyright: ignore
  axis.set_xlabel('layer')
  axis.set_ylabel('layer')
  axis.set_title(title or 'Similarity of attention maps', fontsize=10)
  if count <= 16:
    middle = (low + high) / 2
    for (p, q), value in np.ndenumerate(similarity):
      axis.text(
        q + 1,
        p + 1,
        f'{value:.2f}'.replace('0.', '.'),
        ha='center',
        va='center',
        fontsize=6,
        color='white' if value < middle else 'black',
      )
  figure.colorbar(shown, ax=axis, label='cosine similarity', extend='max')
  return save_figure(figure, path)


def plot_curves(
  curves: Mapping[str, Sequence[float] | np.ndarray],
  path: str | os.PathLike,
  *,
  ylabel: str = 'cosine similarity to the previous block',
  title: str = 'Attention similarity of consecutive blocks',
) -> epath.Path:
  """Draws the similarity of consecutive blocks, with a curve for each model.

  Args:
    curves: {name: (L - 1,)}, from `adjacent_similarity`, whose first value is
      for block 2; or {name: (L, L)}, of which `adjacent_similarity` is drawn.
    path: PNG file to write.
    ylabel: label of the vertical axis.
    title: title of the plot.

  Returns:
    The path.
  """
  figure = new_figure(6.4, 4.0)
  axis = figure.subplots()
  for i, (name, curve) in enumerate(curves.items()):
    curve = np.asarray(curve)
    if curve.ndim == 2:
      curve = adjacent_similarity(curve)
    axis.plot(
      np.arange(2, len(curve) + 2),
      curve,
      label=name,
      lw=1.6,
      marker='os^Dv'[i % 5],
      markersize=4,
    )
  axis.set_ylim(min(axis.get_ylim()[0], 0.0), 1.04)
  axis.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore
  axis.set_xlabel('block')
  axis.set_ylabel(ylabel)
  axis.set_title(title)
  axis.grid(alpha=0.25)
  axis.legend(frameon=False)
  return save_figure(figure, path)
