"""Converts weights from one format to another: `convert`."""

import os
from typing import Any

from etils import epath

from vit_jax.files import as_path, list_directory
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.loading import load_classifier
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.weights import WeightsError, save_weights

_SUFFIXES = ('.npz', '.safetensors')


def convert(
  source: str | os.PathLike,
  target: str | os.PathLike,
  *,
  fmt: str | None = None,
  **options: Any,
) -> Classifier:
  """Reads weights in any format and writes them in another.

  The target also gets the model's name, its preprocessing and class names.

  Args:
    source: .npz, .pth or .safetensors file, workdir, step or hub name.
    target: file or directory to write. A .npz file has the names of the
      published Google files, a .safetensors file timm's. A path without a
      suffix becomes a workdir, to fine-tune or predict from.
    fmt: format of the names of the tensors, a key of `weights.known_formats`;
      None chooses it by the suffix.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    The model with the weights.

  Raises:
    WeightsError: the weights cannot be read or are of another model, or the
      target is a directory that is not empty, or has another suffix.
  """
  path = as_path(target)
  is_workdir = path.suffix == ''
  if not is_workdir and path.suffix not in _SUFFIXES:
    raise WeightsError(
      f'cannot write {target}: give a file {" or ".join(_SUFFIXES)}, or a '
      'directory, whose name has no suffix'
    )
  if (
    is_workdir and path.exists() and (not path.is_dir() or list_directory(path))
  ):
    raise WeightsError(
      f'{target} exists and is not empty: give another directory'
    )
  classifier = load_classifier(source, **options)
  if is_workdir:
    _save_step(classifier, path)
  else:
    save_weights(
      classifier.variables,
      classifier.model,
      path,
      classifier.metadata(),
      fmt=fmt,
    )
  return classifier


def _save_step(classifier: Classifier, workdir: epath.Path) -> None:
  """Writes a workdir with one step of parameters, without an optimizer."""
  variables = classifier.variables
  checkpoints = Checkpoints(workdir)
  checkpoints.save(
    0,
    {
      'params': variables['params'],
      'batch_stats': variables.get('batch_stats', {}),
    },
    classifier.metadata(),
  )
  checkpoints.close()
