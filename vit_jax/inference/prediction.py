"""Classifies image files and directories: `predict`."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

from vit_jax.data.sources.folder import IMAGE_SUFFIXES
from vit_jax.inference.classifier import ImageClassifier
from vit_jax.inference.export import load_exported
from vit_jax.inference.loading import load_classifier


def predict(
  weights: str | os.PathLike,
  images: Sequence[str | os.PathLike] | str | os.PathLike,
  *,
  top_k: int = 5,
  batch_size: int = 32,
  **options: Any,
) -> list[dict[str, Any]]:
  """Classifies images and directories of images.

  Args:
    weights: what `load_classifier` takes, or an exported .stablehlo file.
    images: a path of an image or of a directory, which is searched
      recursively, or several.
    top_k: how many of the most probable classes to give.
    batch_size: images that go through the model together.
    **options: of `load_classifier`: model, module, image_size, classes, fields.

  Returns:
    A result for each image, see `ImageClassifier.classify`.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: a directory without images, weights without a head, or options
      that do not fit.
  """
  if isinstance(images, str | os.PathLike):
    images = [images]
  paths = list_images(images)
  classifier = open_classifier(weights, **options)
  return list(classifier.classify(paths, top_k=top_k, batch_size=batch_size))


def open_classifier(
  weights: str | os.PathLike,
  *,
  classes: Sequence[str] | None = None,
  **options: Any,
) -> ImageClassifier:
  """An exported program or weights; see `load_classifier` for the arguments.

  Raises ValueError for an option that an exported program cannot follow,
  because its model and its image size are fixed.
  """
  if not str(weights).endswith('.stablehlo'):
    return load_classifier(weights, classes=classes, **options)
  given = [name for name, value in options.items() if value]
  if given:
    raise ValueError(
      f'{weights} is an exported program, whose {given[0]} cannot be chosen: '
      'export the weights again with it'
    )
  classifier = load_exported(weights)
  if classes:
    classifier.set_classes(classes)
  return classifier


def list_images(paths: Sequence[str | os.PathLike]) -> list[str]:
  """Files as they are, and the images in directories in the order of names.

  Raises ValueError for a directory without images.
  """
  images = []
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      images.append(str(path))
      continue
    inside = sorted(
      str(p)
      for p in path.rglob('*')
      if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith('.')
    )
    if not inside:
      raise ValueError(f'{path} has no images ({", ".join(IMAGE_SUFFIXES)})')
    images += inside
  return images
