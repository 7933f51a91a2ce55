"""Targets for tokens from stored label maps (arXiv:2104.10858, section 3.2).

A training image is a random crop, which may also be mirrored and warped. Its
targets are cut out of the image's label map by ROI-align, at the region that
the crop shows. The host computes which token of the crop each token of the
training image shows (`token_source`). The device computes the targets
(`expand`).

Shapes: (h, w) label map, (g, g) tokens of the student, N = g * g, k classes
stored for each cell of the map, C classes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.transforms import Geometry
from vit_jax.resampling import triangle


def roi_weights(
  start: jax.Array, end: jax.Array, size: int, bins: int
) -> jax.Array:
  """ROI-align along one axis (arXiv:1703.06870) as a matrix.

  The rule is torchvision's with `aligned=False` and adaptive sampling: a region
  is at least 1 long, and each bin averages ceil(length / bins) samples. Samples
  are interpolated linearly; up to 1 beyond the map they have the value of its
  border, further outside they are zero.

  Args:
    start, end: the region's first and last coordinate, in cells of the map.
    size: number of cells of the map along this axis.
    bins: number of bins of the result.

  Returns:
    (bins, size), float32. ROI-align multiplies a map by the matrix of the rows
    and by the matrix of the columns.
  """
  length = jnp.maximum(end - start, 1.0)
  count = jnp.ceil(length / bins)
  # A crop is at most as long as the map, which bounds the samples of a bin; one
  # more allows for rounding.
  sample = jnp.arange(math.ceil(max(size, 1) / bins) + 1, dtype=jnp.float32)
  bin_start = start + jnp.arange(bins, dtype=jnp.float32) * (length / bins)
  at = bin_start[:, None] + (sample[None] + 0.5) * (length / bins / count)
  used = (sample[None] < count) & (at >= -1) & (at <= size)
  at = jnp.clip(at, 0, size - 1)[..., None]
  cell = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, -1)
  weights = triangle(at - cell, jnp)
  return jnp.sum(weights * used[..., None], axis=1) / count


def crop_logits(
  logits: jax.Array,
  classes: jax.Array,
  box: jax.Array,
  grid: tuple[int, int],
  num_classes: int,
) -> jax.Array:
  """Logits of the tokens of a crop, by ROI-align of the stored map.

  Classes that are not among the stored k have the logit 0.

  Args:
    logits, classes: (k, h, w), the stored map.
    box: (top, left, height, width) of the crop, as fractions of the image.
    grid: (rows, columns) of the result.
    num_classes: C.

  Returns:
    (*grid, C), float32.
  """
  dense = jnp.sum(
    jnp.where(
      classes[..., None] == jnp.arange(num_classes).reshape(1, 1, 1, -1),
      logits[..., None].astype(jnp.float32),
      0,
    ),
    axis=0,
  )
  matrices = []
  for axis in (0, 1):
    size = logits.shape[1 + axis]
    start = box[axis] * size - 0.5
    end = (box[axis] + box[2 + axis]) * size - 0.5
    matrices.append(roi_weights(start, end, size, grid[axis]))
  return jnp.einsum(
    'yh,xw,hwc->yxc', *matrices, dense, precision=jax.lax.Precision.HIGHEST
  )


def crop_targets(
  logits: jax.Array,
  classes: jax.Array,
  box: jax.Array,
  source: jax.Array,
  num_classes: int,
) -> tuple[jax.Array, jax.Array]:
  """Targets of one training image.

  Args:
    logits, classes: (k, h, w), the stored map.
    box: (top, left, height, width) of the crop, as fractions of the image.
    source: (g, g) int, for each token the number (row * g + column) of the
      token of the crop that it shows; -1 for a color that an operation filled
      in. See `token_source`.
    num_classes: C.

  Returns:
    Targets of the tokens (N, C), and the class target (C,) of the whole crop.
    Both are distributions: the softmax of the crop's logits, not smoothed. A
    token that was filled in has a uniform target.
  """
  tokens = crop_logits(
    logits, classes, box, (source.shape[0], source.shape[1]), num_classes
  )
  tokens = tokens.reshape(-1, num_classes)
  source = source.reshape(-1, 1)
  tokens = jnp.where(source >= 0, tokens[jnp.maximum(source[:, 0], 0)], 0)
  cls = crop_logits(logits, classes, box, (1, 1), num_classes)
  return jax.nn.softmax(tokens), jax.nn.softmax(cls.reshape(num_classes))


def expand(
  batch: dict[str, jax.Array], num_classes: int
) -> dict[str, jax.Array]:
  """Replaces the stored maps of a batch by targets; runs on the device.

  Args:
    batch: dict with the arrays that `TokenLabels` adds, stacked to a batch.
    num_classes: C.

  Returns:
    The batch with 'token_labels' (B, N, C) and 'token_cls' (B, C) in place of
    the maps. On a 1x1 grid, for a model without token logits, 'label' becomes
    the class target instead, as in ReLabel (arXiv:2101.05022).
  """
  batch = dict(batch)
  logits, classes, box, source = (
    batch.pop(f'token_{k}') for k in ('logits', 'classes', 'box', 'source')
  )
  tokens, cls = jax.vmap(
    lambda *example: crop_targets(*example, num_classes=num_classes)
  )(logits, classes, box, source)
  if source.shape[1:] == (1, 1):
    return {**batch, 'label': cls}
  return {**batch, 'token_labels': tokens, 'token_cls': cls}


def _inverse_map(name: str, args, size: tuple[int, int]):
  """The affine map from positions in an operation's result to its input.

  Returns:
    (2, 3) matrix for (x, y, 1) in pixels; None if it moves no pixels.
  """
  value = args[0] if args else 0.0
  x, y = size[1] / 2, size[0] / 2
  if name == 'Rotate':
    cos, sin = (f(math.radians(value)) for f in (math.cos, math.sin))
    return (
      (cos, -sin, x - cos * x + sin * y),
      (sin, cos, y - sin * x - cos * y),
    )
  return {
    'ShearX': ((1, value, 0), (0, 1, 0)),
    'ShearY': ((1, 0, 0), (value, 1, 0)),
    'TranslateX': ((1, 0, value), (0, 1, 0)),
    'TranslateY': ((1, 0, 0), (0, 1, value)),
    'TranslateXRel': ((1, 0, value * size[1]), (0, 1, 0)),
    'TranslateYRel': ((1, 0, 0), (0, 1, value * size[0])),
  }.get(name)


def token_source(
  geometry: Geometry, grid: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
  """Which token of the crop each token shows after flip and RandAugment.

  Args:
    geometry: what was done to the image after the crop.
    grid: (rows, columns) of the tokens.
    size: (height, width) of the crop in pixels.

  Returns:
    int16 (rows, columns): the number of the nearest token of the crop, row *
    columns + column; -1 where an operation filled in a color.
  """
  rows, columns = grid
  y = (np.arange(rows)[:, None] + 0.5) * size[0] / rows
  x = (np.arange(columns)[None] + 0.5) * size[1] / columns
  x, y = np.broadcast_arrays(x, y)
  for name, args in reversed(geometry.ops):
    matrix = _inverse_map(name, args, size)
    if matrix is not None:
      (a, b, c), (d, e, f) = matrix
      x, y = a * x + b * y + c, d * x + e * y + f
  if geometry.flip:
    x = size[1] - x
  # A center exactly on the edge of two tokens belongs to the second one. The
  # margin keeps rounding errors from moving it to the first.
  row = np.floor(y * rows / size[0] + 1e-6).astype(int)
  column = np.floor(x * columns / size[1] + 1e-6).astype(int)
  inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
  return np.where(inside, row * columns + column, -1).astype(np.int16)
