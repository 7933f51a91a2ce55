"""Accuracy of weights on a directory of images: `evaluate`."""

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
  """Accuracy and loss of weights on labeled images, each counted once.

  Args:
    weights: what `load_classifier` takes.
    data: a folder with one directory of images per class, a folder with train/
      and test/ (or val/, validation/) of that form, or a packed data set.
    split: such as 'test' or 'train[:500]'. None takes all images of a folder
      of classes, else the test split.
    batch_size: images that go through the model together, on all devices.
    threads: that read and decode.
    max_bad_fraction: of the images that cannot be read. They are named in the
      log and left out.
    **options: of `load_classifier`: model, module, image_size, classes, fields.

  Returns:
    {'top1', 'top5', 'loss', 'examples'}: fractions of the images, the mean of
    the loss that the weights were trained with, and the number of images.

  Raises:
    WeightsError: unreadable weights, or weights of another model.
    ValueError: no such data or split, other classes than the model has, or too
      many images that cannot be read.
  """
  classifier = load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(
      f'{weights} has no head: it gives features, not classes. Fine-tune it '
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
  """A split of a directory of images; see `evaluate` for the default."""
  data = os.fspath(data)
  kind = directory_source(data)
  open_split = lambda split: open_source(
    kind, split=split, data_dir=data, holdout=0.0
  )
  if split is not None:
    return open_split(split)
  try:
    return open_split('test')  # or the split validation, val under that name
  except ValueError as no_test_split:
    # Of a folder of classes nothing is held out, so that 'test' is empty and
    # 'train' is every image. A packed data set may have a single split.
    try:
      return open_split('train')
    except ValueError:
      raise no_test_split from None


def _with_classes(
  source: Source, weights: str, num_classes: int, classes: list[str] | None
) -> Source:
  """The source with its labels in the order of a model's classes.

  Names decide where both have them; a class of the model may have no images.
  """
  if classes and source.class_names:
    unknown = sorted(set(source.class_names) - set(classes))
    if unknown:
      raise ValueError(
        f'{source.name} has {len(unknown)} classes that {weights} does not '
        f'know: {", ".join(unknown[:5])}; it knows {", ".join(classes[:5])}'
        f'{", ..." if len(classes) > 5 else ""}. Rename the directories of '
        'classes, or give other weights'
      )
    return _Renumbered(source, classes)
  if source.num_classes != num_classes:
    raise ValueError(
      f'{source.name} has {source.num_classes} classes, {weights} has '
      f'{num_classes}: they must be the same classes'
    )
  log.warning(
    'the names of the classes of %s are not known: class i of it is taken for '
    'class i of %s',
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
