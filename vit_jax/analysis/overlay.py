"""Attention maps on the photos that they belong to."""

from collections.abc import Sequence
import dataclasses
import os

from etils import epath
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure

_COLORMAP = 'inferno'
_TINT = (255, 170, 40)  # a warm light over the patches with much attention


@dataclasses.dataclass(frozen=True)
class MapOfPhoto:
  """A photo and how much attention its pixels get.

  Attributes:
    photo: (H, W, 3) with pixels in [0, 255].
    heat: (H, W) of `to_photo`; NaN where the model does not see the photo.
    title: what is written above it, such as the file and its class.
    wrong: whether the prediction is known to be wrong.
  """

  photo: np.ndarray
  heat: np.ndarray
  title: str = ''
  wrong: bool = False


def to_photo(
  heat: np.ndarray,
  size: tuple[int, int],
  window: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Enlarges a map smoothly to the resolution of a photo.

  Args:
    heat: (h, w), a value for each patch.
    size: (height, width) of the photo in pixels.
    window: (top, left, height, width) in pixels of the photo, which the patches
      cover, see `transforms.eval_window`; None is the whole photo.

  Returns:
    float32 (height, width), a cubic B-spline through the patches, which stays
    between the smallest and the largest value; NaN outside the window.
  """
  top, left, height, width = window or (0.0, 0.0, *size)
  rows = _weights(size[0], top, height, heat.shape[0])
  columns = _weights(size[1], left, width, heat.shape[1])
  return (rows @ np.asarray(heat, np.float32) @ columns.T).astype(np.float32)


def _weights(pixels: int, start: float, length: float, count: int):
  """The weights (pixels, count) of the patches for each pixel of one axis."""
  position = (np.arange(pixels, dtype=np.float32) + 0.5 - start) / length
  distance = np.abs(position[:, None] * count - 0.5 - np.arange(count))
  near = 2 / 3 - distance**2 + distance**3 / 2
  far = np.maximum(2 - distance, 0) ** 3 / 6
  weights = np.where(distance < 1, near, far)
  # At the borders the patches that are missing have no weight.
  total = weights.sum(axis=1, keepdims=True)
  outside = (position < 0) | (position > 1)
  return np.where(outside[:, None], np.nan, weights / np.maximum(total, 1e-9))


def color_range(heat: np.ndarray) -> tuple[float, float]:
  """The 2 % and the 98 % quantile of a map, the ends of its colors.

  A few patches without content may get most of the attention. Without these
  limits all other patches would look equal.
  """
  low, high = map(float, np.nanquantile(heat, (0.02, 0.98)))
  # A map that is the same everywhere has a range too, to be divided by.
  return low, max(high, low + 1e-6 * max(abs(low), 1e-6))


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """A photo that keeps its colors and light where a map is high.

  Elsewhere it is gray and has 62 % of its light, so that it can be recognized.

  Args:
    photo: (H, W, 3) with pixels in [0, 255].
    heat: (H, W) of `to_photo`; NaN counts as no attention.

  Returns:
    uint8 (H, W, 3).
  """
  low, high = color_range(heat)
  share = np.nan_to_num(np.clip((heat - low) / (high - low), 0, 1))[..., None]
  photo = np.asarray(photo, np.float32)
  gray = photo.mean(axis=-1, keepdims=True)
  mixed = 0.62 * gray * (1 - share) + photo * share
  mixed += 0.3 * share**2 * (np.asarray(_TINT, np.float32) - mixed)
  return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def plot_maps(
  maps: Sequence[MapOfPhoto],
  path: str | os.PathLike,
  *,
  name: str = 'rollout',
  title: str = '',
) -> epath.Path:
  """Draws each photo, its map, and the photo shaded by the map, side by side.

  Args:
    maps: the photos; more than three take two columns.
    path: .png, .jpg, .svg or .pdf file to write.
    name: of the maps.
    title: above the picture.

  Returns:
    The path.
  """
  columns = 1 if len(maps) <= 3 else 2
  rows = -(-len(maps) // columns)
  aspect = max(x.photo.shape[0] / x.photo.shape[1] for x in maps)
  figure = new_figure(
    8.2 * columns, (2.25 * min(aspect, 2) + 0.35) * rows + 0.5
  )
  figure.suptitle(title, fontsize=11)
  axes = figure.subplots(rows, 3 * columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  for i, x in enumerate(maps):
    row, first = i % rows, 3 * (i // rows)
    photo, heat, shaded = axes[row, first : first + 3]
    extent = (0, x.photo.shape[1], x.photo.shape[0], 0)
    photo.imshow(np.asarray(x.photo, np.uint8), extent=extent)
    percent = 100 * x.heat
    low, high = color_range(percent)
    shown = heat.imshow(
      percent, cmap=_COLORMAP, vmin=low, vmax=high, extent=extent
    )
    shaded.imshow(overlay(x.photo, x.heat), extent=extent)
    bar = figure.colorbar(
      shown, ax=heat, fraction=0.046, pad=0.03, extend='both'
    )
    bar.ax.tick_params(labelsize=6)
    photo.set_title(
      x.title, fontsize=8, loc='left', color='#b00020' if x.wrong else 'black'
    )
    if row == 0:
      heat.set_title(f'{name} (% per patch)', fontsize=8)
      shaded.set_title(f'shaded by {name}', fontsize=8)
  return save_figure(figure, path)
