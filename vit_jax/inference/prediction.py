"""Classifies image files and directories: `predict`."""

from collections.abc import Sequence
import os
from typing import Any

from vit_jax.data import listing
from vit_jax.data.decode import image_suffixes
from vit_jax.files import as_path
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
    weights: the first argument of `load_classifier`, or an exported .stablehlo
      file.
    images: one path or several, of images or of directories. Directories are
      searched recursively.
    top_k: how many of the most probable classes to return.
    batch_size: number of images in a batch.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    A result for each image, as from `ImageClassifier.classify`.

  Raises:
    WeightsError: the weights cannot be read, or are of another model.
    ValueError: a directory has no images, the weights have no head, or an
      option does not fit them.
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
  """Loads weights or an exported program.

  Args:
    weights: the first argument of `load_classifier`, or an exported .stablehlo
      file.
    classes: class names, instead of those in the file.
    **options: other arguments of `load_classifier`. An exported program has a
      fixed model and image size, so it takes none of them.

  Raises:
    ValueError: an option was given for an exported program, or see
      `load_classifier`.
  """
  if not str(weights).endswith('.stablehlo'):
    return load_classifier(weights, classes=classes, **options)
  given = [name for name, value in options.items() if value]
  if given:
    raise ValueError(
      f'{weights} is an exported program, whose {given[0]} is fixed: export '
      f'the weights again with another {given[0]}'
    )
  classifier = load_exported(weights)
  if classes:
    classifier.set_classes(classes)
  return classifier


def list_images(paths: Sequence[str | os.PathLike]) -> list[str]:
  """Replaces directories by the images in them, sorted by name.

  Args:
    paths: files and directories. Files are kept, whatever their names are.

  Raises:
    ValueError: a directory has no images.
  """
  images = []
  for path in map(as_path, paths):
    if not path.is_dir():
      images.append(str(path))
      continue
    read = listing.list_images(path, tars=False)
    left_out = listing.in_words(read.skipped)
    if not read.files:
      raise ValueError(
        f'{path} has no images ({", ".join(image_suffixes())})'
        + (f'; skipped: {left_out}' if left_out else '')
      )
    summary = f'{path}: {len(read.files):,} images'
    if left_out:
      summary += f'; skipped: {left_out}'
    listing.report(summary, not set(+read.skipped) - {'hidden'})
    images += sorted(file.path for file in read.files)
  return images
