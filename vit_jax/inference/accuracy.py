"""Measures the accuracy of weights on a directory of images: `evaluate`."""

from collections.abc import Sequence
import logging
import os
from typing import Any

import jax

from vit_jax.data.sources.opening import directory_source, open_source
from vit_jax.data.sources.source import Source
from vit_jax.evaluation.exact import Evaluator
from vit_jax.inference.loading import load_classifier
from vit_jax.parallel.mesh import make_mesh, put_replicated

log = logging.getLogger(__name__)


def evaluate(
  weights: str | os.PathLike,
  data: str | os.PathLike,
  *,
  split: str | None = None,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.01,
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
  source = _with_classes(
    _open(data, split), str(weights), classifier.num_classes, classifier.classes
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


def _open(data: str | os.PathLike, split: str | None) -> Source:
  """Opens a split of a directory of images; see `evaluate` for None."""
  data = os.fspath(data)
  kind = directory_source(data)
  open_split = lambda split: open_source(
    kind, split=split, data_dir=data, holdout=0.0
  )
  if split is not None:
    return open_split(split)
  try:
    return open_split(
      'test'
    )  # sources take their split 'validation' for it too
  except ValueError as no_test_split:
    # In a folder of classes no images are held out for 'test', so 'train' is
    # all images. A packed data set may have only one split.
    try:
      return open_split('train')
    except ValueError:
      raise no_test_split from None


def _with_classes(
  source: Source, weights: str, num_classes: int, classes: list[str] | None
) -> Source:
  """A source whose labels are the numbers of a model's classes.

  Classes are matched by their names, if both have names; the source may lack
  classes of the model. Otherwise the order of the classes is taken to be the
  same, and a warning says so.

  Args:
    source: the images with their labels.
    weights: name of the weights, for messages.
    num_classes, classes: number of the model's classes, and their names or
      None.

  Raises:
    ValueError: the source has classes that the model does not have.
  """
  if classes and source.class_names:
    unknown = sorted(set(source.class_names) - set(classes))
    if unknown:
      raise ValueError(
        f'{source.name} has {len(unknown)} classes that {weights} does not '
        f'have: {", ".join(unknown[:5])}; it has {", ".join(classes[:5])}'
        f'{", ..." if len(classes) > 5 else ""}. Rename the directories of '
        'classes, or give other weights'
      )
    return _Renumbered(source, classes)
  if source.num_classes != num_classes:
    raise ValueError(
      f'{source.name} has {source.num_classes} classes and {weights} has '
      f'{num_classes}: give images of the same classes, or other weights'
    )
  log.warning(
    '%s has no class names, so its class i is taken to be class i of %s',
    weights if source.class_names else source.name,
    source.name if source.class_names else weights,
  )
  return source


class _Renumbered(Source):
  """A source whose labels are numbered as in another list of classes."""

  def __init__(self, parent: Source, classes: Sequence[str]):
    self._parent = parent
    number = {name: i for i, name in enumerate(classes)}
    self._numbers = [number[name] for name in parent.class_names or ()]
    self.name, self.class_names = parent.name, list(classes)
    self.num_classes, self.multi_label = len(classes), parent.multi_label
    self.image_shape, self.in_memory = parent.image_shape, parent.in_memory
    self.fingerprint = parent.fingerprint

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, i: int) -> dict[str, Any]:
    example = self._parent[i]
    label = example['label']
    if isinstance(label, dict):  # a soft label, {class: probability}
      label = {self._numbers[c]: p for c, p in label.items()}
    elif self.multi_label:
      label = [self._numbers[c] for c in label]
    else:
      label = self._numbers[label]
    return {**example, 'label': label}

  def describe(self, i: int) -> str:
    return self._parent.describe(i)
