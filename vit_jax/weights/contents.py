"""What the arrays of a file say about the model that they are for."""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import linen as nn
import numpy as np

from vit_jax.preprocessing import as_size
from vit_jax.weights import naming
from vit_jax.weights.detection import Detected, detect
from vit_jax.weights.rules import ShapeMismatch
from vit_jax.weights.tables import TABLE, Tables


@dataclasses.dataclass(frozen=True)
class FileContents:
  """What tensors tell about themselves; None is what they do not tell.

  Attributes:
    format: naming of the file, a key of `known_formats`.
    num_classes: of its head; 0 if it has no head.
    representation_size: width of its `pre_logits` layer, None without one.
    image_size: (height, width) in pixels of its position table, None if it
      has no such table or one whose grid is not known.
  """

  format: str
  num_classes: int
  representation_size: int | None
  image_size: tuple[int, int] | None


def inspect(
  model: nn.Module,
  arrays: Mapping[str, np.ndarray],
  *,
  fmt: str | None = None,
  source_image_size: int | Sequence[int] | None = None,
) -> FileContents:
  """Reads head, representation layer and image size off a file's arrays.

  Args:
    model: a Linen module of the same family, width and patch size; its own
      number of classes and its representation layer are of no account.
    arrays: {released name: array}.
    fmt, source_image_size: as in `from_state_dict`.

  Raises:
    WeightsError: `fmt` is not a format of this model.
  """
  plain = naming.unrolled(model)
  size = naming.any_image_size(plain)
  shapes, grid = naming.model_shapes(plain, size)
  # A model without a head or pre_logits has no such paths, a file may.
  paths = [*shapes, *(p for p in naming.OPTIONAL if p not in shapes)]
  detected = detect(plain, paths, arrays, fmt)
  return FileContents(
    detected.fmt,
    _length(detected, 'params/head/bias') or 0,
    _length(detected, 'params/pre_logits/bias'),
    as_size(source_image_size)
    if source_image_size is not None
    else _image_size(plain, detected, shapes, size, grid),
  )


def _length(detected: Detected, path: str) -> int | None:
  """Number of values of a bias in the file."""
  name = detected.assigned.get(path, (None, ''))[1]
  return (
    int(np.size(detected.arrays[name])) if name in detected.arrays else None
  )


def _image_size(
  model: nn.Module,
  detected: Detected,
  shapes: dict[str, naming.Shape],
  size: tuple[int, int],
  grid: tuple[int, int] | None,
) -> tuple[int, int] | None:
  """Image size of the file's tables, from the grid that a model has at `size`.

  Tables of rows and columns (learn2d) have grids (h, 1) and (1, w), so the
  largest sides of all tables are taken.
  """
  tables = Tables(model, detected.fmt, detected.arrays)
  file_grid, model_grid = [0, 0], [0, 0]
  for path, shape in shapes.items():
    if not TABLE.fullmatch(path) or path not in detected.assigned:
      continue
    name = detected.assigned[path][1]
    if name not in detected.arrays:
      continue
    try:
      fit = tables.compare(tuple(detected.arrays[name].shape), shape, grid)
    except ShapeMismatch:
      return None
    file_grid = list(map(max, file_grid, fit.file_grid))
    model_grid = list(map(max, model_grid, fit.grid))
  if not all(file_grid):
    return None
  height, width = (
    pixels * n // m
    for pixels, n, m in zip(size, file_grid, model_grid, strict=True)
  )
  return height, width
