"""Measures the accuracy of weights on a directory of images: `evaluate`."""

import os
from typing import Any

import jax

from vit_jax.data.sources.opening import directory_source, open_source
from vit_jax.data.sources.renumbered import with_classes
from vit_jax.data.sources.source import Source
from vit_jax.data.splits import NoSplit
from vit_jax.evaluation.exact import Evaluator
from vit_jax.inference.loading import load_classifier
from vit_jax.parallel.mesh import make_mesh, put_replicated


def evaluate(
  weights: str | os.PathLike,
  data: str | os.PathLike,
  *,
  split: str | None = None,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.01,
  match_classes: str = 'names',
  flat: bool = False,
  **options: Any,
) -> dict[str, float]:
  """Measures accuracy and loss on labeled images, each counted once.

  Args:
    weights: the first argument of `load_classifier`.
    data: a folder with one directory of images per class, a folder with train/
      and test/ (or val/, validation/) of that form, or a packed data set.
    split: a split such as 'test' or 'train[:500]'. None is the test split; if
      there is none, as in a folder with only directories of classes, it is all
      images.
    batch_size: number of images in a batch, which all devices share.
    threads: number of threads that read and decode images.
    max_bad_fraction: largest share of images that cannot be read. Such images
      are named in the log and left out.
    match_classes: 'names' numbers the classes of the data by their names, of
      which the weights must know all; 'numbers' compares no names.
    flat: take every folder for a class, also one named 'train' or 'test'.
    **options: arguments of `load_classifier`: model, module, image_size,
      classes, fields.

  Returns:
    'top1' and 'top5', as fractions of the images; 'loss', the mean of the loss
    that the weights were trained with; and 'examples', the number of images.

  Raises:
    WeightsError: the weights cannot be read, or are of another model.
    ValueError: there is no such data or split, the classes are not those of the
      model, or too many images cannot be read.
  """
  classifier = load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(
      f'{weights} has no head, so it has features but no classes: fine-tune it '
      'first, or measure its features with vit-jax fewshot'
    )
  source = with_classes(
    _open(data, split, flat),
    classifier.num_classes,
    classifier.classes,
    str(weights),
    how=match_classes,
    fix='Rename the directories of classes; or take class i of the data for '
    "output i of the weights, with match_classes='numbers'",
  )
  mesh = make_mesh(devices=jax.local_devices())
  evaluator = Evaluator(
    classifier.model,
    mesh,
    {'data': source},
    num_classes=classifier.num_classes,
    preprocessing=classifier.preprocessing,
    loss=classifier.loss,
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=max_bad_fraction,
  )
  return evaluator(put_replicated(classifier.variables, mesh))['data']


def _open(data: str | os.PathLike, split: str | None, flat: bool) -> Source:
  """Opens a split of a directory of images; see `evaluate` for None."""
  data = os.fspath(data)
  kind = directory_source(data)
  open_split = lambda split: open_source(
    kind, split=split, data_dir=data, holdout=0.0, flat=flat
  )
  if split is not None:
    return open_split(split)
  try:
    return open_split('test')  # or 'validation', if the source has that one
  except NoSplit as no_test_split:
    # In a folder of classes no images are held out for 'test', so 'train' is
    # all images. A packed data set may have only one split.
    try:
      return open_split('train')
    except NoSplit:
      raise no_test_split from None
