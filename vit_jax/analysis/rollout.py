"""Attention rollout (arXiv:2005.00928): what reaches a token, layer by layer.

A layer passes on half of what it attends to and half of its own input, the
residual branch; products of these matrices trace the top back to the patches.
"""

import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure


def rollout(attentions, *, residual: float = 0.5) -> np.ndarray:
  """Product over the layers of (1 - r) A + r I, A the mean over the heads.

  Args:
    attentions: one (B, H, T, T) per layer, the first layer first;
      probabilities (of CaiT and DeepViT the softmax, not the mixed maps, which
      may be negative).
    residual: r, the share of the residual branch.

  Returns:
    (B, T, T): row i says what token i of the last layer is made of. Rows are
    renormalised in each layer and sum to one.
  """
  product = None
  for a in attentions:
    a = np.asarray(a, np.float64).mean(axis=1)
    a = (1 - residual) * a + residual * np.eye(a.shape[-1])[None]
    a /= a.sum(axis=-1, keepdims=True)
    product = a if product is None else a @ product
  if product is None:
    raise ValueError('rollout needs the attention of at least one layer')
  return product


def join_class_layers(attentions, class_attentions) -> list[np.ndarray]:
  """Layers among patches, then layers where the class token alone asks.

  Args:
    attentions: (B, H, N, N) per layer of the first kind.
    class_attentions: (B, H, 1, 1 + N) per layer of the second (CaiT, VOLO).

  Returns:
    One (B, 1, 1 + N, 1 + N) per layer, heads averaged, where every token that
    is not updated attends to itself; for `rollout` with one prefix token.
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
  attentions, grid, num_prefix: int, *, residual: float = 0.5
) -> np.ndarray:
  """Rollout from the class token to the patches.

  Args:
    attentions: one (B, H, T, T) per layer.
    grid: (h, w) of the patches.
    num_prefix: tokens before the patches; the first is the class token. With
      none, the mean over all patches takes its place.
    residual: as in `rollout`.

  Returns:
    (B, h, w), which sums to one over the patches.
  """
  product = rollout(attentions, residual=residual)
  rows = product[:, 0] if num_prefix else product.mean(axis=1)
  maps = rows[:, num_prefix:]
  maps = maps / maps.sum(axis=-1, keepdims=True)
  return maps.reshape(-1, *grid)


def plot_rollout(images, maps, path, titles=None):
  """Draws images, their maps and both together, one row per image.

  Colours end at the 98 % quantile of a map: single patches without content
  collect much attention in large models and would hide the rest.

  Args:
    images: (B, H, W, 3), values in [0, 1].
    maps: (B, h, w), of `rollout_maps`.
    path: PNG file to write.
    titles: a line per image, such as the predicted class.

  Returns:
    The path.
  """
  images, maps = np.asarray(images), np.asarray(maps)
  n, height, width = images.shape[:3]
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
    axes[i, 2].imshow(image, extent=extent)
    dark = 0.8 * (1 - np.clip(heat / top, 0, 1))
    axes[i, 2].imshow(
      np.zeros_like(dark),
      cmap='gray',
      vmin=0,
      vmax=1,
      alpha=dark,
      extent=extent,
      interpolation='bilinear',
    )
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
