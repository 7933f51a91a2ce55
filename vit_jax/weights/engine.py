"""Released arrays -> a model's variables, by the rules of `maps/`.

`jax.eval_shape` gives the parameters that the model expects at an image size.
The format of a file is the rule set that explains its names best
(`detection`), and every parameter is taken from its released name
(`loading`). Heads, position tables and `pre_logits` are adapted as the
fine-tuning code of the file's authors does it (`tables`); anything else that
does not fit is an error that names it. Stacked (scanned) blocks are split
before and stacked after (`blocks`).
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.registry import list_models, model_info
from vit_jax.preprocessing import as_size
from vit_jax.weights import naming
from vit_jax.weights.blocks import stack_blocks
from vit_jax.weights.contents import inspect
from vit_jax.weights.detection import detect, other_architecture
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.loading import HEAD, Loader
from vit_jax.weights.report import Report

Variables = dict[str, Any]


def load_pretrained(
  model: nn.Module,
  source: str | os.PathLike,
  image_size: int | Sequence[int] | None = None,
  *,
  strict: bool = True,
  fmt: str | None = None,
  key: jax.Array | None = None,
  source_image_size: int | Sequence[int] | None = None,
  average: bool = False,
) -> tuple[Variables, Report]:
  """Loads a weight file into a model's variables.

  Args:
    model: a Linen module of this project.
    source: local or remote .npz, .pth, .bin, .pth.tar or .safetensors file, a
      vit_jax workdir or step, or 'hf:ORG/NAME'.
    image_size: int or (height, width) that the model is to be used at. None
      is the size that the file says it is for, else as in `from_state_dict`.
    strict, fmt, key: as in `from_state_dict`.
    source_image_size: image size of the file's position tables; None is what
      the file itself says.
    average: of a workdir or step, the moving average of the parameters.

  Returns:
    Variables of float32 numpy arrays and a Report, whose `metadata` is what the
    file says about itself, such as its class names.

  Raises:
    WeightsError: unreadable or not fitting; the message names the file.
  """
  from vit_jax.weights import formats

  arrays, metadata, _ = formats.read(source, average=average)
  own_size = source_image_size or metadata.image_size
  variables, report = from_state_dict(
    model,
    arrays,
    own_size if image_size is None else image_size,
    strict=strict,
    fmt=fmt,
    key=key,
    source=str(source),
    source_image_size=own_size,
  )
  report.metadata = metadata
  return variables, report


def from_state_dict(
  model: nn.Module,
  arrays: Mapping[str, np.ndarray],
  image_size: int | Sequence[int] | None = None,
  *,
  strict: bool = True,
  fmt: str | None = None,
  key: jax.Array | None = None,
  source: str = 'the state dict',
  source_image_size: int | Sequence[int] | None = None,
) -> tuple[Variables, Report]:
  """Loads released arrays into a model's variables.

  Args:
    model: a Linen module of this project.
    arrays: {released name: array} in one of `known_formats(model)`; blocks may
      be stacked, and wrappers such as 'params/' or 'module.' are ignored.
    image_size: int or (height, width) that the model is to be used at.
      Position tables are resized to it: Google formats linearly with aligned
      corners, PyTorch formats by bicubic interpolation. None is the size of
      the arrays' own position table; without a table, the size that the
      registry has for this model, else 224.
    strict: with False, parameters that the arrays lack keep the model's own
      initial values, and arrays without a parameter are only reported.
    fmt: name of the format; None finds it.
    key: PRNG key for what is initialized (a head of another class count);
      without it, its kernel is zero and its bias `model.head_bias` or zero.
    source: what error messages call the arrays.
    source_image_size: image size of the arrays' position tables; without it
      their grid is taken as square.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays, and a Report.

  Raises:
    WeightsError: missing, left-over or misshapen tensors, all of them named
      with the expected and actual shapes. There is no partial result.
  """
  source = str(source)
  if image_size is None:
    image_size = inspect(
      model, arrays, fmt=fmt, source_image_size=source_image_size
    ).image_size or _registered_size(model)
  size = as_size(image_size)
  plain = naming.unrolled(model)
  shapes, grid = naming.model_shapes(plain, size)
  detected = detect(plain, shapes, arrays, fmt)
  if not detected.fits():
    raise WeightsError(other_architecture(source, model, detected))

  report = Report(source, detected.fmt, size)
  for name, x in detected.outside.items():
    report.add('dropped', name, '', x.shape, 'no parameter of the model')
  loader = Loader(
    plain,
    detected,
    shapes,
    grid,
    report,
    None if source_image_size is None else as_size(source_image_size),
  )
  flat = loader.run(strict)
  if loader.problems:
    raise WeightsError(
      f'{source} does not fit {type(model).__name__} at image size '
      f'{size[0]}x{size[1]} (format {detected.fmt}):{_lines(loader.problems)}'
    )
  if loader.fresh:
    flat |= _initial(plain, loader.fresh, shapes, size, key)
  if plain is not model:
    flat = stack_blocks(flat, naming.model_shapes(model, size)[0])
  return unflatten_dict(flat, sep='/'), report


def _registered_size(model: nn.Module) -> tuple[int, int]:
  """Image size of the first registered name with this model's fields."""
  for name in list_models():
    info = model_info(name)
    if type(model) is info.module and all(
      getattr(model, field) == value for field, value in info.fields.items()
    ):
      return info.preprocessing.size
  return naming.any_image_size(model)


def _lines(problems: list[str], limit: int = 8) -> str:
  shown = [f'\n  {line}' for line in problems[:limit]]
  if len(problems) > limit:
    shown.append(f'\n  and {len(problems) - limit} more')
  return ''.join(shown)


def _initial(
  model: nn.Module,
  paths: list[str],
  shapes: dict[str, naming.Shape],
  image_size: tuple[int, int],
  key: jax.Array | None,
) -> dict[str, np.ndarray]:
  """Initial values of some parameters.

  Without a key, the kernels of heads are zero and their biases constant, so
  that nothing depends on a seed that nobody chose.
  """
  bias = getattr(model, 'head_bias', 0.0)
  flat = {
    path: np.full(
      shapes[path], bias if path.endswith('/bias') else 0.0, np.float32
    )
    for path in paths
    if key is None and HEAD.fullmatch(path)
  }
  paths = [path for path in paths if path not in flat]
  if not paths:
    return flat

  @jax.jit
  def init(key):
    images = jnp.zeros((1, *image_size, 3), jnp.float32)
    values = flatten_dict(model.init(key, images, train=False), sep='/')
    return {path: values[path] for path in paths}

  key = jax.random.key(0) if key is None else key
  return flat | {path: np.asarray(x) for path, x in init(key).items()}
