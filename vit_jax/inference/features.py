"""Features of images, and files of them."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from vit_jax.data.names import printable
from vit_jax.files import as_path, staged
from vit_jax.inference.classifier import (
  Classifier,
  Image,
  why_unreadable,
)

SUFFIXES = ('.npz', '.parquet')


@dataclasses.dataclass(frozen=True)
class FeatureBatch:
  """Features of some images.

  Attributes:
    images: names of those that were read.
    arrays: 'features' (B, D), and 'tokens' (B, T, D) if they were requested.
    errors: {image: reason} of those that could not be read.
  """

  images: list[str]
  arrays: dict[str, np.ndarray]
  errors: dict[str, str]


def compute_features(
  classifier: Classifier,
  images: Sequence[Image],
  *,
  tokens: bool = False,
  batch_size: int = 32,
) -> Iterator[FeatureBatch]:
  """The values before the head, in the order of the images.

  Args:
    classifier: the model with its weights.
    images: paths, bytes of files, or uint8 arrays.
    tokens: whether to return the tokens of the last layer too.
    batch_size: number of images in a batch.

  Raises:
    ValueError: the model has no tokens.
  """

  @jax.jit
  def forward(variables, batch):
    _, out = classifier.forward(variables, batch)
    wanted = {
      'features': 'pre_logits',
      **({'tokens': 'encoded'} if tokens else {}),
    }
    missing = [key for key in wanted.values() if key not in out]
    if missing:
      raise ValueError(
        f'{classifier.name} has no tokens (intermediate {missing[0]!r}): leave '
        'out --tokens'
      )
    return {name: out[key] for name, key in wanted.items()}

  size = min(batch_size, max(1, len(images)))
  for start, loaded in classifier.read_ahead(images, size):
    names, pixels, errors = [], [], {}
    for position, x in enumerate(loaded, start):
      image = images[position]
      is_path = isinstance(image, str | os.PathLike)
      name = printable(str(image)) if is_path else str(position)
      if isinstance(x, np.ndarray):
        names.append(name)
        pixels.append(x)
      else:
        errors[name] = why_unreadable(x)
    arrays = {}
    if pixels:
      batch = np.zeros((size, *pixels[0].shape), pixels[0].dtype)
      batch[: len(pixels)] = pixels
      values = jax.device_get(forward(classifier.on_device, batch))
      arrays = {
        k: np.asarray(v, np.float32)[: len(pixels)] for k, v in values.items()
      }
    yield FeatureBatch(names, arrays, errors)


def write_features(
  batches: Iterable[FeatureBatch], path: str | os.PathLike
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Writes features to an .npz or .parquet file, which appears when complete.

  Returns:
    The arrays by name, and {image: reason} of unreadable images.

  Raises:
    ValueError: another suffix, or no image could be read.
    ImportError: pyarrow is missing, for .parquet.
  """
  suffix = as_path(path).suffix
  if suffix not in SUFFIXES:
    raise ValueError(f'{path}: the file must end with {" or ".join(SUFFIXES)}')
  write = _write_parquet if suffix == '.parquet' else _write_npz
  if suffix == '.parquet':
    _import_pyarrow()
  read = list(batches)
  errors = {k: v for batch in read for k, v in batch.errors.items()}
  full = [batch for batch in read if batch.images]
  if not full:
    raise ValueError(
      'none of the images can be read: '
      + '; '.join(f'{k}: {v}' for k, v in list(errors.items())[:3])
    )
  table = {
    'image': np.array([name for batch in full for name in batch.images]),
    **{
      key: np.concatenate([batch.arrays[key] for batch in full])
      for key in full[0].arrays
    },
  }
  with staged(path) as temporary:
    write(temporary, table)
  return table, errors


def _write_npz(path: str, table: dict[str, np.ndarray]) -> None:
  with open(path, 'wb') as file:
    arrays: Any = table
    np.savez(file, **arrays)


def _write_parquet(path: str, table: dict[str, np.ndarray]) -> None:
  pyarrow, parquet = _import_pyarrow()
  columns = {
    name: pyarrow.array(value.tolist()) for name, value in table.items()
  }
  parquet.write_table(pyarrow.table(columns), path)


def _import_pyarrow() -> tuple[Any, Any]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as e:
    raise ImportError(
      'a .parquet file needs pyarrow: pip install pyarrow, or write .npz'
    ) from e
  return pyarrow, pyarrow.parquet
