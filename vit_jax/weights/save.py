"""Saves the variables of a model in released formats."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict
import numpy as np

from vit_jax import files
from vit_jax.preprocessing import as_size
from vit_jax.weights import naming
from vit_jax.weights.blocks import unstack_blocks
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.formats import CHECKSUMS, METADATA, checksums
from vit_jax.weights.metadata import WeightsMetadata

# The formats to try for each kind of file, in order. Every model has 'flax'.
_PREFERRED = {
  '.npz': ('npz', 'flax'),
  '.safetensors': ('timm', 'official', 'flax'),
}
# Formats in which the names of parameters begin with 'params/'.
_WITH_COLLECTION = ('flax', 'big_vision')


def save_weights(
  variables: Mapping[str, Any],
  model: nn.Module,
  path: str | os.PathLike,
  metadata: WeightsMetadata | None = None,
  *,
  fmt: str | None = None,
) -> str:
  """Writes a model's variables to a file in a released format.

  `load_pretrained` reads the same variables back, bit for bit. The format
  'big_vision' is an exception: it has no row for the class token in the
  position table, so the row is added to the token.

  Args:
    variables: {'params': ..., 'batch_stats': ...}. Stacked blocks are written
      as single blocks.
    model: the module of the variables.
    path: local or remote file, which appears under its name when it is
      complete. A .npz file has the names of the published Google files, a
      .safetensors file those of timm or else of the authors' PyTorch code. Both
      have Flax names if the model has no such format.
    metadata: stored in the file as JSON: model, class names, preprocessing.
    fmt: a key of `known_formats(model)`, instead of the above.

  Returns:
    The format that was written.

  Raises:
    WeightsError: the suffix is another one, or the format has no name for a
      parameter.
  """
  path = files.as_path(path)
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

    text = json.dumps(metadata.to_json()) if metadata else ''
    header = {'format': 'pt', CHECKSUMS: checksums(arrays, text)}
    if metadata:
      header[METADATA] = text
    files.write_atomically(path, save(arrays, header))
  return fmt


def _first_complete(
  variables: Mapping[str, Any], model: nn.Module, candidates: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
  """The arrays in the first format with a name for every parameter."""
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
  """Converts a model's variables to the arrays of a released format.

  Args:
    variables: {'params': ..., 'batch_stats': ...}; stacked blocks are split.
    model: the module of the variables.
    fmt: a key of `known_formats(model)`.

  Returns:
    {released name: array}.

  Raises:
    WeightsError: the format is unknown, or has no name for a parameter.
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
  """The names and shapes of the tensors in a model's file.

  Args:
    model: a Linen module of this project.
    image_size: int or (height, width) in pixels.
    fmt: a key of `known_formats(model)`.

  Returns:
    {released name: shape}.

  Raises:
    WeightsError: the format is unknown, or has no name for a parameter.
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
  """{released name: the arrays whose concatenation the file has}."""
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
    number, _ = rule.chunk or rule.rows or (0, 1)
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
  """Adds row 0 of the position table to the class token, and removes the row.

  big_vision adds its table before it prepends the class token, so its table has
  no row for the token.
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
