"""Reads from the arrays of a file what its model looks like."""

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
  """What the names and shapes of a file's tensors say about its model.

  Attributes:
    format: naming of the tensors, a key of `known_formats`.
    num_classes: number of classes of the head; 0 if there is no head.
    representation_size: width of the layer `pre_logits`; None if there is none.
    image_size: (height, width) in pixels that the position table is for; None
      if there is no table, or if its grid is not known.
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
  """Reads format, head, representation layer and image size from arrays.

  Args:
    model: a Linen module of the file's family, width and patch size. Its number
      of classes and its representation layer may differ from the file's.
    arrays: {released name: array}.
    fmt, source_image_size: as in `from_state_dict`.

  Returns:
    What the arrays say; `source_image_size` replaces the image size if given.

  Raises:
    WeightsError: `fmt` is not a format of this model.
  """
  plain = naming.unrolled(model)
  size = naming.any_image_size(plain)
  shapes, grid = naming.model_shapes(plain, size)
  # The file may have a head or pre_logits where the model has none.
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
  """Length of the bias at a Flax path; None if the file has no such bias."""
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
  """The image size that the file's position tables are for, or None.

  It follows from the file's grid and from the grid that the model has for
  images of `size`. The two tables of posemb='learn2d' have grids (h, 1) and
  (1, w), so the largest sides of all tables are used.
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
