"""A model's variables -> released names, arrays and files."""

import json

from etils import epath
from flax.traverse_util import flatten_dict
import numpy as np

from vit_jax.weights import naming
from vit_jax.weights.blocks import unstack_blocks
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.formats import METADATA

# Formats to try for a file, first to last; 'flax' always works.
_PREFERRED = {
  '.npz': ('npz', 'flax'),
  '.safetensors': ('timm', 'official', 'flax'),
}
# Formats whose names begin with the collection.
_WITH_COLLECTION = ('flax', 'big_vision')


def save_weights(
  variables,
  model,
  path,
  metadata: dict | None = None,
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
      ones, or those of its own tree); local or remote. Appears when complete.
    metadata: travels with the file, as JSON; 'classes' are class names,
      'image_size' tells the grid of a position table that is not square.
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
  partial = path.parent / f'{path.name}.partial'
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.npz':
    if metadata:
      arrays[METADATA] = np.array(json.dumps(metadata))
    with partial.open('wb') as file:
      np.savez(file, **arrays)
  else:
    from safetensors.numpy import save

    header = {'format': 'pt'}
    if metadata:
      header[METADATA] = json.dumps(metadata)
    partial.write_bytes(save(arrays, header))
  partial.replace(path)
  return fmt


def _first_complete(variables, model, candidates):
  known = naming.known_formats(model)
  candidates = [fmt for fmt in candidates if fmt in known]
  for fmt in candidates:
    try:
      return to_state_dict(variables, model, fmt), fmt
    except WeightsError:
      if fmt == candidates[-1]:
        raise


def to_state_dict(variables, model, fmt: str) -> dict[str, np.ndarray]:
  """A model's variables as {released name: array} of a format.

  Args:
    variables: {'params': ..., 'batch_stats': ...}.
    model: the module they belong to; stacked blocks are taken apart.
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
      np.concatenate(parts) if len(parts) > 1 else parts[0]
    )
    for name, parts in _pieces(flat, plain, fmt).items()
  }


def released_shapes(model, image_size, fmt: str) -> dict[str, tuple]:
  """{released name: shape} of a model's file in a format, without arrays."""
  plain = naming.unrolled(model)
  flat = {
    path: naming.abstract(shape)
    for path, shape in naming.model_shapes(plain, image_size)[0].items()
  }
  return {
    name: (sum(x.shape[0] for x in parts), *parts[0].shape[1:])
    for name, parts in _pieces(flat, plain, fmt).items()
  }


def _pieces(flat, model, fmt) -> dict[str, list[np.ndarray]]:
  """Released name -> the arrays that are concatenated under it."""
  if fmt == 'big_vision':
    flat = _fold_class_row(flat)
  assigned = naming.assign(naming.rules_of(model, fmt), flat)
  lost = [path for path in flat if path not in assigned]
  if lost:
    raise WeightsError(
      f'format {fmt} of {type(model).__name__} has no name for '
      f'{", ".join(lost[:5])}{" and others" if len(lost) > 5 else ""}. Save '
      "as flat Flax names instead (fmt='flax')"
    )
  pieces = {}
  for path, (rule, name) in assigned.items():
    part, _ = rule.part or (0, 1)
    if fmt in _WITH_COLLECTION and not name.startswith('batch_stats/'):
      name = f'params/{name}'
    parts = pieces.setdefault(name, {})
    if part in parts:
      raise WeightsError(
        f'format {fmt} of {type(model).__name__} gives two '
        f'parameters the name {name}'
      )
    parts[part] = rule.to_released(flat[path], path, name)
  return {
    name: [parts[j] for j in sorted(parts)] for name, parts in pieces.items()
  }


def _fold_class_row(flat: dict) -> dict:
  """big_vision adds its table before the class token: row 0 goes into it."""
  table = 'params/Transformer/posembed_input/pos_embedding'
  if 'params/cls' not in flat or table not in flat:
    return flat
  rows = flat[table]
  return {
    **flat,
    'params/cls': flat['params/cls'] + rows[:, :1],
    table: rows[:, 1:],
  }
