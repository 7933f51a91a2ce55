"""Describes models and weight files: sizes, work, layers, tensors.

Everything is counted on abstract shapes: nothing is allocated or computed.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
import os
import re
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import numpy as np

from vit_jax.models import flops
from vit_jax.models.area.areas import num_areas
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.preprocessing import as_size
from vit_jax.weights import (
  WeightsError,
  from_state_dict,
  inspect,
  read,
  resembles,
)


def _trace(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Any], int]:
  """Abstract variables and intermediates, and multiply-accumulates."""
  image = jax.ShapeDtypeStruct((1, *image_size, 3), 'float32')
  shapes = {}

  # The variables are made inside of the function, so that it is traced once.
  # Their initializers multiply no matrices and add nothing to the count.
  def forward(image):
    (logits, out), variables = model.init_with_output(
      jax.random.key(0), image, train=False
    )
    shapes['variables'] = flatten_dict(variables, sep='/')
    shapes['out'] = out
    return logits

  macs = flops.count_macs(forward, image)
  return shapes['variables'], shapes['out'], macs


def _count(variables: Mapping[str, Any], collection: str) -> int:
  """Number of values in a collection of flattened variables."""
  return sum(
    x.size for path, x in variables.items() if path.startswith(collection)
  )


def measure(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int]:
  """Parameters of a model, and multiply-accumulates for one image.

  Args:
    model: a Linen module.
    image_size: (height, width).
  """
  if hasattr(model, 'scan'):
    # A stack of equal blocks has one to trace: the same counts, in less time.
    model = model.clone(scan=True)
  variables, _, macs = _trace(model, image_size)
  return _count(variables, 'params/'), macs


def describe_models(pattern: str = '*') -> Iterator[dict[str, Any]]:
  """Describes each registered model whose name matches a shell pattern.

  Yields:
    {'name', 'parameters', 'gmacs' (what papers call GFLOPs), 'image_size'
    [height, width], 'released', 'role'}.
  """
  for name in list_models(pattern):
    info = model_info(name)
    size = info.preprocessing.size
    parameters, macs = measure(create_model(name), size)
    yield {
      'name': name,
      'parameters': parameters,
      'gmacs': macs / 1e9,
      'image_size': list(size),
      'released': list(info.released),
      'role': info.role,
    }


def describe_model(
  name: str,
  *,
  image_size: int | Sequence[int] | None = None,
  num_classes: int = 1000,
  fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """A model's layers and totals.

  Args:
    name: registered name.
    image_size: one number or (height, width); None is the model's own.
    num_classes: 0 for no head.
    fields: other fields of the module.

  Returns:
    {'name', 'module', 'image_size', 'num_classes', 'parameters', 'gmacs',
    'statistics' (values of batch normalization that are not parameters),
    'normalize', 'crop', 'interpolation', 'released', 'layers': [{'name',
    'shape', 'size'}], 'areas': [number of areas of each area block]}.

  Raises:
    ValueError: no such model, or no such field.
  """
  info = model_info(name)
  model = create_model(name, num_classes, **(fields or {}))
  preprocessing = info.preprocessing
  size = as_size(preprocessing.size if image_size is None else image_size)
  variables, out, macs = _trace(model, size)
  return {
    'name': name,
    'module': type(model).__name__,
    'image_size': list(size),
    'num_classes': num_classes,
    'parameters': _count(variables, 'params/'),
    'gmacs': macs / 1e9,
    'statistics': _count(variables, 'batch_stats/'),
    'normalize': preprocessing.normalize,
    'crop': preprocessing.crop,
    'interpolation': preprocessing.interpolation,
    'released': list(info.released),
    'areas': _areas(model, out),
    'layers': [
      {
        'name': path.removeprefix('params/'),
        'shape': list(x.shape),
        'size': x.size,
      }
      for path, x in variables.items()
    ],
  }


def _areas(model: nn.Module, out: Mapping[str, Any]) -> list[int]:
  """Number of areas in each area block."""
  counts = []
  for height, width in getattr(model, 'area_sizes', ()):
    tokens, grid = out['tokens'].shape[1], out['stem'].shape[1:3]
    # Areas of one row lie on the sequence of all tokens. Higher areas lie on
    # the grid of patches, and the class token is an area of its own.
    is_grid = height > 1
    memory = grid if is_grid else (1, tokens)
    class_token = is_grid and tokens > math.prod(grid)
    counts.append(num_areas(memory, (height, width), class_token))
  return counts


def describe_file(
  source: str | os.PathLike, *, model: str | None = None
) -> dict[str, Any]:
  """The tensors of a weight file or workdir, and which model it is for.

  Args:
    source: what `weights.read` takes.
    model: registered name to check the tensors against.

  Returns:
    {'source', 'kind', 'values', 'tensors': [{'name', 'shape', 'dtype',
    'size'}], 'metadata' (of `WeightsMetadata.to_json`), 'model' (the name in
    the metadata, or None), 'fits': [registered names whose parameters it
    holds]}.

  Raises:
    WeightsError: unreadable, or not of `model`.
  """
  arrays, metadata, kind = read(source)
  if model is not None:
    _check(model, source, arrays)
    fits = [model]
  else:
    fits = [] if metadata.model else matching_models(arrays)
  return {
    'source': str(source),
    'kind': kind,
    'values': int(sum(x.size for x in arrays.values())),
    'tensors': [
      {
        'name': name,
        'shape': list(x.shape),
        'dtype': str(x.dtype),
        'size': int(x.size),
      }
      for name, x in arrays.items()
    ],
    'metadata': metadata.to_json(),
    'model': metadata.model,
    'fits': fits,
  }


def _check(
  name: str, source: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """WeightsError unless the arrays are a model's parameters."""
  contents = inspect(create_model(name), arrays)
  fields = {}
  if contents.representation_size:
    fields['representation_size'] = contents.representation_size
  size = model_info(name).preprocessing.size
  from_state_dict(
    create_model(name, **fields), arrays, size, source=str(source)
  )


def matching_models(arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Registered names whose parameters are these arrays.

  Several may fit: names that differ in how they compute (activation, epsilon of
  a norm, normalization of images) have the same tensors.
  """
  sizes = {n for x in arrays.values() for n in x.shape}
  numbers = {int(n) for name in arrays for n in re.findall(r'\d+', name)}
  names = []
  for name in list_models():
    model = create_model(name)
    if not _may_match(model, sizes, numbers) or not resembles(model, arrays):
      continue
    try:
      _check(name, 'the file', arrays)
    except (WeightsError, ValueError, TypeError):
      continue
    names.append(name)
  return names


def _may_match(model: nn.Module, sizes: set[int], numbers: set[int]) -> bool:
  """Whether the main sizes of a model occur among those of a file.

  A quick test, which saves tracing most of the models.

  Args:
    model: of this package.
    sizes: the lengths of all axes of all tensors.
    numbers: the numbers that occur in names of tensors.
  """
  lengths = [getattr(model, name, None) for name in ('width', 'patch_size')]
  lengths.append(int(64 * getattr(model, 'width_factor', 0)))
  if any(isinstance(n, int) and n > 1 and n not in sizes for n in lengths):
    return False
  depth = getattr(model, 'depth', None)
  if not isinstance(depth, int):
    return True
  # Blocks are numbered from 0 in the names, or stacked along an axis.
  return depth - 1 in numbers or depth in sizes
