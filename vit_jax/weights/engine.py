"""Turns released arrays into a model's variables, by the rules in `maps/`.

`jax.eval_shape` gives the parameters that the model has for an image size. The
format of a file is the one whose names agree best with the file's
(`detection`), and every parameter is read under its name in this format
(`loading`). Heads, position tables (`tables`) and `pre_logits` are adapted to
the model as in the fine-tuning code of the file's authors. Any other difference
is an error that names the tensor. Stacked blocks of scanned models are split
first and stacked at the end (`blocks`).
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
  new_head: bool = False,
  prefix: str | None = None,
) -> tuple[Variables, Report]:
  """Loads a weight file into a model's variables.

  Args:
    model: a Linen module of this project.
    source: local or remote .npz, .pth, .bin, .pth.tar or .safetensors file, a
      vit_jax workdir or step, or 'hf:ORG/NAME'.
    image_size: int or (height, width) in pixels of the images that the model
      will get. None is the size in the file's metadata; if there is none, the
      size that `from_state_dict` chooses.
    strict, fmt, key: as in `from_state_dict`.
    source_image_size: image size that the file's position tables are for; None
      is the size in the file's metadata.
    average: whether to load the moving average of the parameters from a workdir
      or step that has one.
    new_head: as in `from_state_dict`.
    prefix: what stands before the names of the model's tensors in a .pth or
      .safetensors file, such as 'model_ema'; None searches it.

  Returns:
    Variables of float32 numpy arrays and a Report, whose `metadata` is that of
    the file, with its class names for example.

  Raises:
    WeightsError: the file cannot be read or does not fit; the message names it.
  """
  from vit_jax.weights import formats

  arrays, metadata, _ = formats.read(source, average=average, prefix=prefix)
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
    new_head=new_head,
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
  new_head: bool = False,
) -> tuple[Variables, Report]:
  """Loads released arrays into a model's variables.

  Args:
    model: a Linen module of this project.
    arrays: {released name: array} in one of `known_formats(model)`; blocks may
      be stacked, and wrappers such as 'params/' or 'module.' are ignored.
    image_size: int or (height, width) in pixels of the images that the model
      will get. Position tables are resized for it: linearly with aligned
      corners for Google's formats, by bicubic interpolation for PyTorch's. None
      is the size that the arrays' position table is for; without a table, it is
      the size that the registry has for the model, or 224.
    strict: whether a parameter without an array, or an array without a
      parameter, is an error. With False, such a parameter keeps the initial
      value of the model, and such an array is only reported.
    fmt: name of the format; None detects it.
    key: PRNG key for parameters that are initialized, such as a head for
      another number of classes. Without it the kernel of such a head is zero,
      and its bias is `model.head_bias` or zero.
    source: name of the arrays in error messages.
    source_image_size: image size that the arrays' position tables are for;
      without it their grid is taken to be square.
    new_head: initialize the head, although the arrays may have one for as many
      classes: the classes are others.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays, and a Report.

  Raises:
    WeightsError: tensors are missing, have another shape, or are left over. The
      message names them with the expected and actual shapes.
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
    reason = f'not under the prefix {detected.prefix!r} of the parameters'
    report.add('dropped', name, '', x.shape, reason)
  loader = Loader(
    plain,
    detected,
    shapes,
    grid,
    report,
    None if source_image_size is None else as_size(source_image_size),
  )
  flat = loader.run(strict, new_head)
  if loader.problems:
    raise WeightsError(
      f'{source} does not fit {type(model).__name__} at image size '
      f'{size[0]}x{size[1]} (format {detected.fmt}): {_listed(loader.problems)}'
    )
  if loader.fresh:
    flat |= _initial(plain, loader.fresh, shapes, size, key)
  if plain is not model:
    flat = stack_blocks(flat, naming.model_shapes(model, size)[0])
  return unflatten_dict(flat, sep='/'), report


def _registered_size(model: nn.Module) -> tuple[int, int]:
  """Image size of the first registered model with the fields of this one."""
  for name in list_models():
    info = model_info(name)
    if type(model) is info.module and all(
      getattr(model, field) == value for field, value in info.fields.items()
    ):
      return info.preprocessing.size
  return naming.any_image_size(model)


def _listed(problems: list[str], limit: int = 4) -> str:
  """The first problems in one line, and the number of the others."""
  more = len(problems) - limit
  return '; '.join(problems[:limit]) + (f'; and {more} more' * (more > 0))


def _initial(
  model: nn.Module,
  paths: list[str],
  shapes: dict[str, naming.Shape],
  image_size: tuple[int, int],
  key: jax.Array | None,
) -> dict[str, np.ndarray]:
  """Initial values of the parameters at some paths.

  Without a key, the kernels of heads are zero and their biases constant, so
  that the result does not depend on a seed that the user did not choose.
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
