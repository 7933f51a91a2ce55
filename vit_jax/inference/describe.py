"""What models and weight files are: sizes, work, layers, tensors.

Everything is counted on abstract shapes: nothing is allocated or run.
"""

import math
import re
from typing import Any

from flax.traverse_util import flatten_dict
import jax
import numpy as np

from vit_jax.models import flops
from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.weights import WeightsError, from_state_dict, read


def _trace(model, image_size):
  """Abstract variables and intermediates, and multiply-accumulates."""
  image = jax.ShapeDtypeStruct((1, *image_size, 3), 'float32')
  shapes = {}

  def forward(image):
    (logits, out), variables = model.init_with_output(
      jax.random.key(0), image, train=False
    )
    shapes['variables'] = flatten_dict(variables, sep='/')
    shapes['out'] = out
    return logits

  macs = flops.count_macs(forward, image)  # initialisers multiply nothing
  return shapes['variables'], shapes['out'], macs


def measure(model, image_size) -> tuple[int, int]:
  """Parameters of a model, and multiply-accumulates for one image.

  Args:
    model: a Linen module.
    image_size: (height, width).
  """
  if hasattr(model, 'scan'):  # traces one block of a stack: faster
    model = model.clone(scan=True)
  variables, _, macs = _trace(model, image_size)
  return sum(
    x.size for path, x in variables.items() if path.startswith('params/')
  ), macs


def models(pattern: str = '*'):
  """Rows of `vit-jax models`, one at a time.

  Yields:
    {'name', 'parameters', 'gmacs', 'image_size', 'released'} for each
    registered name that matches; gmacs are what papers call GFLOPs.
  """
  for name in list_models(pattern):
    entry = model_info(name)
    parameters, macs = measure(create_model(name), entry.preprocessing.size)
    yield {
      'name': name,
      'parameters': parameters,
      'gmacs': macs / 1e9,
      'image_size': entry.preprocessing.size[0],
      'released': list(entry.released),
    }


def describe_model(
  name: str,
  *,
  image_size=None,
  num_classes: int = 1000,
  fields: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """A model's layers and totals.

  Args:
    name: registered name.
    image_size: int or (height, width); None is the model's own.
    num_classes: 0 for no head.
    fields: other fields of the module.

  Returns:
    {'name', 'module', 'image_size', 'num_classes', 'parameters', 'gmacs',
    'statistics' (BatchNorm values that are no parameters), 'normalize',
    'crop', 'interpolation', 'released', 'layers': [{'name', 'shape', 'size'}],
    'areas': [number of areas of each area block]}.
  """
  entry = model_info(name)
  model = create_model(name, num_classes, **(fields or {}))
  size = entry.preprocessing.size if image_size is None else image_size
  size = (size, size) if np.ndim(size) == 0 else tuple(size)
  variables, out, macs = _trace(model, size)
  count = lambda part: sum(
    x.size for path, x in variables.items() if path.startswith(part)
  )
  return {
    'name': name,
    'module': type(model).__name__,
    'image_size': list(size),
    'num_classes': num_classes,
    'parameters': count('params/'),
    'gmacs': macs / 1e9,
    'statistics': count('batch_stats/'),
    'normalize': entry.preprocessing.normalize,
    'crop': entry.preprocessing.crop or 'squash',
    'interpolation': entry.preprocessing.interpolation,
    'released': list(entry.released),
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


def _areas(model, out) -> list[int]:
  """Number of areas in each area block."""
  from vit_jax.models.area.areas import num_areas

  counts = []
  for height, width in getattr(model, 'area_sizes', ()):
    tokens, grid = out['tokens'].shape[1], out['stem'].shape[1:3]
    memory = grid if height > 1 else (1, tokens)
    counts.append(
      num_areas(
        memory, (height, width), height > 1 and tokens > math.prod(grid)
      )
    )
  return counts


def describe_file(source, *, model: str | None = None) -> dict[str, Any]:
  """The tensors of a weight file or workdir, and what it is for.

  Args:
    source: what `weights.read` takes.
    model: registered name to check the tensors against.

  Returns:
    {'source', 'kind', 'values', 'tensors': [{'name', 'shape', 'dtype',
    'size'}], 'metadata' (of `WeightsMetadata.to_json`), 'model' (the name in
    the metadata, or None), 'fits':
    [registered names whose parameters it holds]}.

  Raises:
    WeightsError: unreadable, or not of `model`.
  """
  arrays, metadata, kind = read(source)
  if model is not None:
    _check(model, source, arrays)
    fits = [model]
  else:
    fits = [] if metadata.model else recognise(arrays)
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


def _check(name: str, source, arrays):
  """WeightsError unless the arrays are a model's parameters."""
  entry = model_info(name)
  fields = {}
  for path, x in arrays.items():
    if path.endswith('pre_logits/bias'):
      fields['representation_size'] = x.shape[-1]
  from_state_dict(
    create_model(name, **fields),
    arrays,
    entry.preprocessing.size,
    source=source,
  )


def recognise(arrays) -> list[str]:
  """Registered names whose parameters are these arrays.

  Several may fit: names that differ in how they compute (activation, norm
  epsilon, normalisation) have the same tensors.
  """
  sizes = {n for x in arrays.values() for n in x.shape}
  numbers = {int(n) for name in arrays for n in re.findall(r'\d+', name)}
  fits = []
  for name in list_models():
    model = create_model(name)
    known = [getattr(model, field, None) for field in ('width', 'patch_size')]
    known.append(int(64 * getattr(model, 'width_factor', 0)))
    if any(isinstance(n, int) and n > 1 and n not in sizes for n in known):
      continue
    depth = getattr(model, 'depth', None)  # blocks are numbered, or one stack
    if (
      isinstance(depth, int)
      and depth - 1 not in numbers
      and (depth not in sizes)
    ):
      continue
    try:
      _check(name, 'the file', arrays)
    except (WeightsError, ValueError, TypeError):
      continue
    fits.append(name)
  return fits
