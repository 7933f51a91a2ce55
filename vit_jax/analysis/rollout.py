"""Attention rollout (arXiv:2005.00928): the share of a patch in a token.

A layer is described by a matrix, the mean of its attention and of the identity,
which stands for the residual connection. The product of the matrices of all
layers has the share of each input token in each output token.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import os

from etils import epath
import numpy as np
from PIL import Image

from vit_jax.analysis.plots import new_figure, save_figure


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
    a = np.asarray(a, np.float64).mean(axis=1)
    a = (1 - residual) * a + residual * np.eye(a.shape[-1])[None]
    a /= a.sum(axis=-1, keepdims=True)
    shares = a if shares is None else a @ shares
    yield shares


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
  """
  shares = rollout(attentions, residual=residual)
  rows = shares[:, 0] if num_prefix else shares.mean(axis=1)
  maps = rows[:, num_prefix:]
  maps = maps / maps.sum(axis=-1, keepdims=True)
  return maps.reshape(-1, *grid)


def to_size(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Enlarges maps smoothly to the resolution of the input.

  Args:
    maps: (B, h, w), from `rollout_maps`.
    size: (height, width) in pixels.

  Returns:
    float32 (B, height, width), in which a pixel has the density of its
    surroundings (bicubic, without values below 0).
  """
  resized = [
    Image.fromarray(np.asarray(x, np.float32)).resize(
      (size[1], size[0]), Image.Resampling.BICUBIC
    )
    for x in maps
  ]
  return np.maximum(np.stack([np.asarray(x) for x in resized]), 0)


def plot_rollout(
  images: np.ndarray,
  maps: np.ndarray,
  path: str | os.PathLike,
  titles: Sequence[str] | None = None,
) -> epath.Path:
  """Draws each image, its map, and the image shaded by the map, in one row.

  The range of colors ends at the 98 % quantile of a map. In large models, a few
  patches without content get much attention, and without this limit all other
  patches would look equal.

  Args:
    images: (B, H, W, 3), values in [0, 1].
    maps: (B, h, w), from `rollout_maps`.
    path: PNG file to write.
    titles: a title for each image, such as the predicted class.

  Returns:
    The path.
  """
  images, maps = np.asarray(images), np.asarray(maps)
  n, height, width = images.shape[:3]
  fine = to_size(maps, (height, width))
  figure = new_figure(8, 2.35 * n * height / width + 0.4)
  axes = figure.subplots(n, 3, squeeze=False)
  extent = (0, width, height, 0)
  for i, (image, heat) in enumerate(zip(images, maps, strict=False)):
    top = max(np.quantile(heat, 0.98), np.finfo(float).tiny)
    axes[i, 0].imshow(image, extent=extent)
    shown = axes[i, 1].imshow(
      heat,
      cmap='viridis',
      vmin=0,
      vmax=top,
      extent=extent,
      interpolation='nearest',
    )
    light = np.clip(fine[i] / top, 0, 1) ** 0.5  # so that little is not black
    shaded = image * (0.15 + 0.85 * light)[..., None]
    axes[i, 2].imshow(np.clip(shaded, 0, 1), extent=extent)
    bar = figure.colorbar(
      shown, ax=axes[i, 1], fraction=0.046, pad=0.04, extend='max'
    )
    bar.ax.tick_params(labelsize=7)
    for axis in axes[i]:
      axis.set_xticks([])
      axis.set_yticks([])
    if titles:
      axes[i, 0].set_ylabel(titles[i], fontsize=9)
  for axis, title in zip(
    axes[0],
    ('input', 'rollout (share per patch)', 'input shaded by rollout'),
    strict=False,
  ):
    axis.set_title(title, fontsize=10)
  return save_figure(figure, path)
