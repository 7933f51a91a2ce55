"""A model's variables -> released names, arrays and files."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict
import numpy as np

from vit_jax import files
from vit_jax.preprocessing import as_size
from vit_jax.weights import naming
from vit_jax.weights.blocks import unstack_blocks
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.formats import METADATA
from vit_jax.weights.metadata import WeightsMetadata

# Formats to try for each kind of file, in this order; 'flax' always works.
_PREFERRED = {
  '.npz': ('npz', 'flax'),
  '.safetensors': ('timm', 'official', 'flax'),
}
# Formats whose names begin with the collection.
_WITH_COLLECTION = ('flax', 'big_vision')


def save_weights(
  variables: Mapping[str, Any],
  model: nn.Module,
  path: str | os.PathLike,
  metadata: WeightsMetadata | None = None,
  *,
  fmt: str | None = None,
) -> str:
  """Writes a model's variables as a released file would have them.

  `load_pretrained` gives the same variables back, bit for bit (big_vision's
  format excepted, where a row of the table is added to the class token).

  Args:
    variables: {'params': ..., 'batch_stats': ...}; stacked blocks are written
      one by one.
    model: the module they belong to.
    path: .npz (published Google names where the model has them, else the
      names of its own tree) or .safetensors (timm's names, or the official
      ones, or those of its own tree); local or remote. The file appears under
      its name when it is complete.
    metadata: stored in the file as JSON: model, class names, how images are
      fed.
    fmt: another format of `known_formats(model)`.

  Returns:
    The format written.

  Raises:
    WeightsError: another suffix, or parameters that the format has no name
      for.
  """
  path = epath.Path(path)
  if path.suffix not in _PREFERRED:
    raise WeightsError(
      f'cannot write {path}: its suffix must be {" or ".join(_PREFERRED)}'
    )
  if fmt is None:
    arrays, fmt = _first_complete(variables, model, _PREFERRED[path.suffix])
  else:
    arrays = to_state_dict(variables, model, fmt)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.npz':
    if metadata:
      arrays[METADATA] = np.array(json.dumps(metadata.to_json()))
    with files.open_atomically(path, 'wb') as file:
      np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
  else:
    from safetensors.numpy import save

    header = {'format': 'pt'}
    if metadata:
      header[METADATA] = json.dumps(metadata.to_json())
    files.write_atomically(path, save(arrays, header))
  return fmt


def _first_complete(
  variables: Mapping[str, Any], model: nn.Module, candidates: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
  """The arrays in the first format that names every parameter."""
  known = naming.known_formats(model)
  *first, last = [fmt for fmt in candidates if fmt in known]
  for fmt in first:
    try:
      return to_state_dict(variables, model, fmt), fmt
    except WeightsError:
      continue
  return to_state_dict(variables, model, last), last


def to_state_dict(
  variables: Mapping[str, Any], model: nn.Module, fmt: str
) -> dict[str, np.ndarray]:
  """A model's variables as {released name: array} of a format.

  Args:
    variables: {'params': ..., 'batch_stats': ...}; stacked blocks are split.
    model: the module they belong to.
    fmt: a key of `known_formats(model)`.

  Raises:
    WeightsError: unknown format, or a parameter it has no name for.
  """
  flat = {
    path: np.asarray(x)
    for path, x in flatten_dict(dict(variables), sep='/').items()
  }
  plain = naming.unrolled(model)
  if plain is not model:
    size = naming.any_image_size(plain)
    flat = unstack_blocks(flat, naming.model_shapes(plain, size)[0])
  return {
    name: np.ascontiguousarray(
      np.concatenate(chunks) if len(chunks) > 1 else chunks[0]
    )
    for name, chunks in _chunks(flat, plain, fmt).items()
  }


def released_shapes(
  model: nn.Module, image_size: int | Sequence[int], fmt: str
) -> dict[str, tuple[int, ...]]:
  """{released name: shape} of a model's file in a format, without arrays.

  Args:
    model: a Linen module of this project.
    image_size: int or (height, width).
    fmt: a key of `known_formats(model)`.
  """
  plain = naming.unrolled(model)
  shapes, _ = naming.model_shapes(plain, as_size(image_size))
  flat = {path: naming.abstract(shape) for path, shape in shapes.items()}
  return {
    name: (sum(x.shape[0] for x in chunks), *chunks[0].shape[1:])
    if len(chunks) > 1
    else chunks[0].shape
    for name, chunks in _chunks(flat, plain, fmt).items()
  }


def _chunks(
  flat: dict[str, np.ndarray], model: nn.Module, fmt: str
) -> dict[str, list[np.ndarray]]:
  """Released name -> the arrays that are concatenated under it."""
  if fmt == 'big_vision' and getattr(model, 'class_posemb', True):
    flat = _fold_class_row(flat)
  assigned = naming.assign(naming.rules_of(model, fmt), flat)
  lost = [path for path in flat if path not in assigned]
  if lost:
    raise WeightsError(
      f'format {fmt} of {type(model).__name__} has no name for '
      f'{", ".join(lost[:5])}{" and others" if len(lost) > 5 else ""}. Save '
      "as flat Flax names instead (fmt='flax')"
    )
  numbered: dict[str, dict[int, np.ndarray]] = {}
  for path, (rule, name) in assigned.items():
    number, _ = rule.chunk or (0, 1)
    if fmt in _WITH_COLLECTION and not name.startswith('batch_stats/'):
      name = f'params/{name}'
    chunks = numbered.setdefault(name, {})
    if number in chunks:
      raise WeightsError(
        f'format {fmt} of {type(model).__name__} gives two '
        f'parameters the name {name}'
      )
    chunks[number] = rule.to_released(flat[path], path, name)
  return {
    name: [chunks[j] for j in sorted(chunks)]
    for name, chunks in numbered.items()
  }


def _fold_class_row(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds row 0 of the position table to the class token.

  big_vision adds its table to the patches before it prepends the class token,
  so its table has no row for the token.
  """
  table = 'params/Transformer/posembed_input/pos_embedding'
  if 'params/cls' not in flat or table not in flat:
    return flat
  rows = flat[table]
  return {
    **flat,
    'params/cls': flat['params/cls'] + rows[:, :1],
    table: rows[:, 1:],
  }
