"""Loads weights as a classifier: `load_classifier`.

    classifier = load_classifier('runs/flowers')
    classifier = load_classifier('ViT-B_16.npz', model='vit_b16')

Workdirs, and files that `vit-jax convert` wrote, have the name, preprocessing
and class names of their model. The name of a published file, such as
regnety_160-a5fe301d.pth, the config.json of a hub entry, or the tensors tell
the model too (`identify`). For other files, `model` must be given.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.inference.classifier import Classifier
from vit_jax.inference.identify import (
  fields_of_format,
  identify,
  without_area_attention,
)
from vit_jax.models.patches import unseen_pixels
from vit_jax.models.registry import create_model, load_module, model_info
from vit_jax.preprocessing import Preprocessing, as_size
from vit_jax.text import note
from vit_jax.weights import WeightsError, from_state_dict, inspect, read
from vit_jax.weights.contents import FileContents


def load_classifier(
  source: str | os.PathLike,
  *,
  model: str | None = None,
  module: str = '',
  image_size: int | Sequence[int] | None = None,
  classes: Sequence[str] | None = None,
  fields: Mapping[str, Any] | None = None,
  prefix: str | None = None,
) -> Classifier:
  """Loads weights, with the preprocessing and class names that belong to them.

  Args:
    source: workdir, step, .npz, .pth or .safetensors file, or hub name.
    model: registered name of the model, or timm's; None finds it by
      `identify.identify`.
    module: Python module that registers the model, see
      `models.registry.load_module`; '' is the module in the metadata.
    image_size: int or (height, width) in pixels; None is the size that the
      weights are for.
    classes: class names, instead of those in the metadata.
    fields: fields of the model that differ from those of its registered name.
    prefix: what stands before the names of the model's tensors in the file;
      None searches it, see `weights.read`.

  Returns:
    The model with its weights.

  Raises:
    WeightsError: the weights cannot be read, are of another model, or do not
      tell their model.
    ValueError: there is no such model or module, or not one class name for each
      class.
  """
  arrays, metadata, _ = read(source, prefix=prefix)
  if metadata.average:
    arrays, metadata, _ = read(source, average=True)
  module = module or metadata.module
  if module:
    load_module(module)
  known = identify(source, arrays, metadata, model)
  name, file_size = known.name, metadata.image_size
  all_fields = {**known.fields, **(fields or {})}
  file_classes = all_fields.pop('num_classes', metadata.num_classes)
  with _variants_named(arrays, name, metadata.model):
    contents = inspect(
      create_model(name, **all_fields), arrays, source_image_size=file_size
    )
    if file_classes is None:
      file_classes = contents.num_classes
    if not metadata.model:
      all_fields = {**fields_of_format(name, contents.format), **all_fields}
    if contents.representation_size and _has_representation_size(name):
      all_fields.setdefault('representation_size', contents.representation_size)
    preprocessing = known.preprocessing or model_info(name).preprocessing
    net = create_model(name, file_classes, **all_fields)
    size = as_size(image_size or _image_size(net, contents, preprocessing))
    _note_unseen_pixels(net, size)
    variables, report = from_state_dict(
      net, arrays, size, source=str(source), source_image_size=file_size
    )
  report.metadata = metadata
  classifier = Classifier(
    name=name,
    num_classes=file_classes,
    preprocessing=dataclasses.replace(preprocessing, size=size),
    loss=metadata.loss,
    variables=variables,
    source=str(source),
    model=net,
    fields=all_fields,
    module=module,
    report=report,
  )
  if known.classes and len(known.classes) == file_classes:
    classifier.set_classes(known.classes)
  if classes:
    classifier.set_classes(classes)
  return classifier


def random_classifier(
  model: str,
  *,
  module: str = '',
  image_size: int | Sequence[int] | None = None,
  fields: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> Classifier:
  """A model with random parameters and no head, to compare features with.

  Args:
    model: registered name.
    module, image_size, fields: as for `load_classifier`; None is the size of
      the model's own preprocessing.
    seed: of the parameters.

  Raises:
    ValueError: there is no such model, module or field.
  """
  if module:
    load_module(module)
  info, fields = model_info(model), dict(fields or {})
  size = as_size(image_size or info.preprocessing.size)
  net = create_model(info.name, 0, **fields)
  images = jnp.zeros((1, *size, 3))
  init = jax.jit(lambda key: net.init(key, images, train=False))
  return Classifier(
    name=info.name,
    num_classes=0,
    preprocessing=dataclasses.replace(info.preprocessing, size=size),
    variables=init(jax.random.key(seed)),
    source='random parameters',
    model=net,
    fields=fields,
    module=module,
  )


def _image_size(
  net: nn.Module, contents: FileContents, preprocessing: Preprocessing
) -> tuple[int, int]:
  """The size that the weights are for, (height, width) in pixels.

  Patches that do not divide an image leave its edge out, so that a position
  table of 27 x 27 patches of 14 pixels is for images of 378 to 391 pixels. The
  size of the preprocessing counts if it has the grid of the table.
  """
  if contents.image_size is None:
    return preprocessing.size
  patch = as_size(getattr(net, 'patch_size', 1))
  covered = tuple(
    n // p * p for n, p in zip(preprocessing.size, patch, strict=True)
  )
  if covered == contents.image_size:
    return preprocessing.size
  return contents.image_size


@contextlib.contextmanager
def _variants_named(
  arrays: Mapping[str, np.ndarray], name: str, known: str | None
) -> Iterator[None]:
  """Adds to an error of weights the names of the models that they fit.

  Args:
    arrays: the tensors of the file.
    name: the model that was tried; models of its class are searched.
    known: the model that the file says, if it does.
  """
  try:
    yield
  except WeightsError as e:
    from vit_jax.inference.describe import matching_models

    module = model_info(name).module
    names = [known] if known else matching_models(arrays, module)
    names = without_area_attention(arrays, names)
    if not names or names == [name]:
      raise
    raise WeightsError(
      f'{e}{"" if str(e).endswith(".") else "."} Its tensors fit '
      f'{", ".join(names[:6])}: name the model with --model'
    ) from e


def _note_unseen_pixels(model: nn.Module, size: tuple[int, int]) -> None:
  words = unseen_pixels(model, size)
  if words:
    note(words)


def _has_representation_size(name: str) -> bool:
  """Whether the class of a model has the field `representation_size`."""
  fields = dataclasses.fields(model_info(name).module)
  return any(field.name == 'representation_size' for field in fields)
