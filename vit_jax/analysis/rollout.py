"""Attention rollout (arXiv:2005.00928): the share of a patch in a token.

A layer is described by a matrix, the mean of its attention and of the identity,
which stands for the residual connection. The product of the matrices of all
layers has the share of each input token in each output token.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# A patch is an outlier if its share is so many times the median of those of its
# neighbors.
OUTLIER = 4.0


def rollout(
  attentions: Sequence[np.ndarray], *, residual: float = 0.5
) -> np.ndarray:
  """The product over the layers of (1 - r) A + r I.

  A is the attention of a layer, averaged over the heads, and I the identity.

  Args:
    attentions: one (B, H, T, T) per layer, from the first layer on. They must
      be probabilities, so for CaiT and DeepViT the softmax and not the mixed
      maps, which may be negative.
    residual: r, the share of the residual connection.

  Returns:
    (B, T, T). Row i has the shares of the input tokens in token i of the last
    layer. Rows are renormalized in each layer and sum to one.

  Raises:
    ValueError: there is no layer.
  """
  last = collections.deque(rollouts(attentions, residual=residual), maxlen=1)
  if not last:
    raise ValueError('rollout needs the attention of at least one layer')
  return last.pop()


def rollouts(
  attentions: Iterable[np.ndarray], *, residual: float = 0.5
) -> Iterator[np.ndarray]:
  """Yields the rollout up to each layer, (B, T, T); see `rollout`."""
  shares = None
  for a in attentions:
    a = _matrix(a, residual)
    shares = a if shares is None else a @ shares
    yield shares


def _matrix(attention: np.ndarray, residual: float) -> np.ndarray:
  """The matrix of a layer, (B, T, T), whose rows sum to one; see `rollout`."""
  a = np.asarray(attention, np.float64).mean(axis=1)
  a = (1 - residual) * a + residual * np.eye(a.shape[-1])
  return a / a.sum(axis=-1, keepdims=True)


def join_class_layers(
  attentions: Sequence[np.ndarray], class_attentions: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Joins layers of patches with layers whose only query is the class token.

  The result is for `rollout_maps` with num_prefix=1.

  Args:
    attentions: one (B, H, N, N) for each layer of patches.
    class_attentions: one (B, H, 1, 1 + N) for each later layer whose only query
      is the class token (CaiT, VOLO).

  Returns:
    One (B, 1, 1 + N, 1 + N) per layer, the mean over the heads. A token that a
    layer does not change attends only to itself.
  """
  layers = []
  for a in [*attentions, *class_attentions]:
    a = np.asarray(a, np.float64).mean(axis=1)
    tokens = max(a.shape[-1], attentions[0].shape[-1] + 1)
    full = np.broadcast_to(np.eye(tokens), (len(a), tokens, tokens)).copy()
    if a.shape[1] == 1:
      full[:, 0] = a[:, 0]
    else:
      full[:, 1:, 1:] = a
    layers.append(full[:, None])
  return layers


def select(
  attentions: Sequence[np.ndarray],
  *,
  layers: tuple[int, int] | None = None,
  head: int | None = None,
  discard: float = 0.0,
) -> list[np.ndarray]:
  """Some layers, heads and probabilities of attention maps, for a rollout.

  The rollout of one layer, with `residual=0`, is the attention of this layer.

  Args:
    attentions: one (B, H, T, T) per layer.
    layers: numbers of the first and of the last layer, from 1, or from the end
      if negative: (-1, -1) is the last layer only. None is all.
    head: number of the only head of every layer, from 1; None is all. A layer
      that has one map for all heads keeps it.
    discard: the fraction of the keys of each query that have the smallest
      probabilities of the mean over the heads. These become 0, and the others
      are scaled to sum to one.

  Returns:
    One (B, H or 1, T, T) per selected layer.

  Raises:
    ValueError: there is no such layer or head, or `discard` is not in [0, 1).
  """
  selected = list(attentions)
  if layers is not None:
    count = len(selected)
    first, last = (n if n > 0 else n + count + 1 for n in layers)
    if not 1 <= first <= last <= count:
      raise ValueError(
        f'layer={layers[0]}:{layers[1]}: the model has the layers 1 to '
        f'{count}, or -{count} to -1 from the end, and the first must not be '
        'after the last'
      )
    selected = selected[first - 1 : last]
  if head is not None:
    heads = max(a.shape[1] for a in selected)
    if not 1 <= head <= heads:
      raise ValueError(f'head={head}: the layers have the heads 1 to {heads}')
    selected = [
      a if a.shape[1] == 1 else a[:, head - 1 : head] for a in selected
    ]
  if not 0 <= discard < 1:
    raise ValueError(f'discard={discard}: must be at least 0 and below 1')
  if discard:
    selected = [_without_smallest(a, discard) for a in selected]
  return selected


def _without_smallest(attention: np.ndarray, fraction: float) -> np.ndarray:
  """(B, H, T, T) -> (B, 1, T, T), see `select`."""
  a = np.asarray(attention, np.float64).mean(axis=1, keepdims=True)
  count = int(fraction * a.shape[-1])
  smallest = np.argsort(a, axis=-1, kind='stable')[..., :count]
  np.put_along_axis(a, smallest, 0.0, axis=-1)
  return a / a.sum(axis=-1, keepdims=True)


def rollout_maps(
  attentions: Sequence[np.ndarray],
  grid: tuple[int, int],
  num_prefix: int,
  *,
  residual: float = 0.5,
) -> np.ndarray:
  """The share of each patch in the class token.

  Args:
    attentions: one (B, H, T, T) per layer.
    grid: (h, w) of the patches.
    num_prefix: number of tokens before the patches, of which the first is the
      class token. For 0, the mean over all patches replaces the class token.
    residual: as in `rollout`.

  Returns:
    (B, h, w). The shares of the patches of an image sum to one.

  Raises:
    ValueError: there is no layer.
  """
  if not attentions:
    raise ValueError('rollout needs the attention of at least one layer')
  # Only the row of one token is needed, so that vectors are multiplied and not
  # matrices, from the last layer to the first.
  batch, tokens = len(attentions[0]), attentions[0].shape[-1]
  rows = np.zeros((batch, 1, tokens))
  if num_prefix:
    rows[..., 0] = 1
  else:
    rows[:] = 1 / tokens
  for a in reversed(attentions):
    rows = rows @ _matrix(a, residual)
  maps = rows[:, 0, num_prefix:]
  maps = maps / maps.sum(axis=-1, keepdims=True)
  return maps.reshape(-1, *grid)


def outliers(maps: np.ndarray, factor: float = OUTLIER) -> np.ndarray:
  """The patches with much more attention than their neighbors have.

  Large models keep global information in a few patches without content, which
  then get much attention (arXiv:2309.16588).

  Args:
    maps: (B, h, w), from `rollout_maps`.
    factor: a patch is an outlier if its share is larger than so many times the
      median of its up to eight neighbors.

  Returns:
    bool (B, h, w).
  """
  return np.asarray(maps) > factor * _neighbor_medians(maps)


def fill_outliers(maps: np.ndarray, factor: float = OUTLIER) -> np.ndarray:
  """Gives each outlier the median of its neighbors.

  Args:
    maps, factor: as in `outliers`.

  Returns:
    (B, h, w). The shares of an image no longer sum to one.
  """
  return np.where(outliers(maps, factor), _neighbor_medians(maps), maps)


def _neighbor_medians(maps: np.ndarray) -> np.ndarray:
  """The median of the up to eight neighbors of each patch, (B, h, w)."""
  maps = np.asarray(maps, np.float64)
  _, rows, columns = maps.shape
  if rows * columns == 1:
    return maps
  padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
  neighbors = [
    padded[:, y : y + rows, x : x + columns]
    for y in range(3)
    for x in range(3)
    if (y, x) != (1, 1)
  ]
  return np.nanmedian(neighbors, axis=0)
