"""Describes models and weight files: sizes, work, layers, tensors.

Models are traced with shapes instead of arrays, so nothing is computed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from vit_jax.models.catalog import catalog
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
  """Shapes of variables and intermediates, and multiply-accumulates."""
  image = jax.ShapeDtypeStruct((1, *image_size, 3), 'float32')
  shapes = {}

  # Initializing and applying the model in one function needs one trace instead
  # of two. The initializers have no matrix products, so they are not counted.
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
  """Counts the parameters and the work of a model.

  Args:
    model: a Linen module.
    image_size: (height, width) in pixels.

  Returns:
    The number of parameters, and the multiply-accumulates of the forward pass
    for one image.
  """
  if hasattr(model, 'scan'):
    # A scan traces one of its equal blocks, so the same counts take less time.
    model = model.clone(scan=True)
  variables, _, macs = _trace(model, image_size)
  return _count(variables, 'params/'), macs


def describe_models(pattern: str = '*') -> Iterator[dict[str, Any]]:
  """Describes each registered model whose name matches a shell pattern.

  Yields:
    {'name', 'parameters', 'gmacs', 'image_size', 'released', 'role'}: the
    number of parameters; multiply-accumulates for one image in units of 1e9,
    which papers call GFLOPs; [height, width] in pixels; and the attributes of
    `ModelInfo`.
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
  """Describes a model: its preprocessing, its size and its parameters.

  Args:
    name: registered name.
    image_size: int or (height, width) in pixels; None is the size that the
      model is registered with.
    num_classes: number of classes; 0 for no head.
    fields: fields of the module to change.

  Returns:
    {'name', 'module', 'image_size', 'num_classes', 'parameters', 'gmacs',
    'statistics', 'normalize', 'crop', 'interpolation', 'released', 'areas',
    'layers'}. 'gmacs' is as in `describe_models`; 'statistics' is the number of
    running statistics of BatchNorm; 'areas' has the number of areas of each
    block with area attention; 'layers' has {'name', 'shape', 'size'} for each
    parameter and statistic.

  Raises:
    ValueError: there is no such model or field.
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
  """The number of areas in each block with area attention."""
  counts = []
  for height, width in getattr(model, 'area_sizes', ()):
    tokens, grid = out['tokens'].shape[1], out['stem'].shape[1:3]
    # As in `EncoderBlock`: areas of one row are in the sequence of all tokens;
    # higher areas are in the grid of patches, and the class token is an area by
    # itself.
    is_grid = height > 1
    memory = grid if is_grid else (1, tokens)
    class_token = is_grid and tokens > math.prod(grid)
    counts.append(num_areas(memory, (height, width), class_token))
  return counts


def describe_file(
  source: str | os.PathLike,
  *,
  model: str | None = None,
  prefix: str | None = None,
) -> dict[str, Any]:
  """Describes a weight file or workdir: its tensors, and its model.

  Args:
    source: the first argument of `weights.read`.
    model: registered name of a model; the tensors must be its parameters.
    prefix: as in `weights.read`.

  Returns:
    {'source', 'kind', 'values', 'tensors', 'metadata', 'model', 'fits'}.
    'values' is the number of values in all tensors; 'tensors' has {'name',
    'shape', 'dtype', 'size'} for each; 'metadata' is from
    `WeightsMetadata.to_json`; 'model' is the name in the metadata, or None;
    'fits' has the registered names of models with these parameters.

  Raises:
    WeightsError: the file cannot be read, or is not one of `model`.
  """
  arrays, metadata, kind = read(source, prefix=prefix)
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
  """Raises WeightsError unless the arrays are the parameters of a model."""
  contents = inspect(create_model(name), arrays)
  fields = {}
  if contents.representation_size:
    fields['representation_size'] = contents.representation_size
  size = model_info(name).preprocessing.size
  from_state_dict(
    create_model(name, **fields), arrays, size, source=str(source)
  )


def matching_models(
  arrays: Mapping[str, np.ndarray],
  module: type[nn.Module] | None = None,
  names: Iterable[str] | None = None,
) -> list[str]:
  """The registered names of the models that have these parameters.

  Several may fit, because models that differ only in an activation, the epsilon
  of a norm or the normalization of images have the same parameters.

  Args:
    arrays: {name in a file: array}.
    module: class of the models that are tried; None for all models.
    names: names of the models that are tried; None for all registered ones.
  """
  values = sum(x.size for x in arrays.values())
  sizes = {n for x in arrays.values() for n in x.shape}
  kernels = {
    n for x in arrays.values() if x.ndim == 4 and 3 in x.shape for n in x.shape
  }
  numbers = {int(n) for name in arrays for n in re.findall(r'\d+', name)}
  fitting = []
  for name in list_models() if names is None else names:
    model = create_model(name)
    if module is not None and type(model) is not module:
      continue
    if (
      values < _least_values(name, model)
      or not _may_match(model, sizes, kernels, numbers)
      or not resembles(model, arrays)
    ):
      continue
    try:
      _check(name, 'the file', arrays)
    except (WeightsError, ValueError, TypeError):
      continue
    fitting.append(name)
  return fitting


def _least_values(name: str, model: nn.Module) -> float:
  """How many values a file of a model has, whatever its head and table."""
  row, width = catalog().get(name), getattr(model, 'width', None)
  if row is None:
    return 0
  if not isinstance(width, int):
    return 0.5 * row['parameters']
  # Of what is left without two heads of 1,000 classes, the table of positions
  # is less than a fifth.
  return 0.8 * (row['parameters'] - 2002 * width)


def _may_match(
  model: nn.Module, sizes: set[int], kernels: set[int], numbers: set[int]
) -> bool:
  """Whether the width, patch size and depth of a model occur in a file.

  This quick test makes it unnecessary to trace most of the models.

  Args:
    model: a registered model.
    sizes: lengths of the axes of all tensors in the file.
    kernels: those of tensors with four axes, one of which is of colors.
    numbers: numbers in the names of the tensors.
  """
  lengths = [
    getattr(model, 'width', None),
    int(64 * getattr(model, 'width_factor', 0)),
  ]
  if any(isinstance(n, int) and n > 1 and n not in sizes for n in lengths):
    return False
  patch = getattr(model, 'patch_size', None)
  if isinstance(patch, int) and kernels and getattr(model, 'stem', 0) is None:
    if patch not in kernels:
      return False
  # A stem of stride 2 or 4 makes the patches of the embedding smaller. Some
  # programs embed the values of a patch as a vector.
  if isinstance(patch, int) and not sizes & {
    *(patch, patch // 2, patch // 4),
    3 * patch * patch,
  }:
    return False
  depth = getattr(model, 'depth', None)
  # A RegNet's depth counts the blocks of all stages, each numbered from 1.
  if not isinstance(depth, int) or not hasattr(model, 'width'):
    return True
  # The names have the numbers of the blocks from 0, or blocks are stacked along
  # an axis.
  return depth - 1 in numbers or depth in sizes
