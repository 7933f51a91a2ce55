"""A source whose labels are numbered as in another list of classes."""

from collections.abc import Callable, Sequence
import logging
from typing import Any

import numpy as np

from vit_jax.data.classes import ClassMismatch, match_classes
from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.sources.source import Source

log = logging.getLogger(__name__)


def with_classes(
  source: Source,
  num_classes: int,
  classes: Sequence[str] | None,
  owner: str,
  *,
  how: str = 'names',
  fix: str = '',
  say: Callable[[str], None] = log.warning,
) -> Source:
  """The source with its labels as the outputs of a model are numbered.

  Args:
    source: labeled images.
    num_classes: outputs of the model.
    classes: names of the outputs; None if they are not known.
    owner: whose outputs they are, for messages.
    how: 'names' compares names where both have them, 'numbers' takes class i of
      the source for output i.
    fix: how the user can go on, for the error.
    say: prints or logs what was found.

  Raises:
    ClassMismatch: other classes, see `match_classes`; without names, another
      number of them.
  """
  if how == 'names' and classes and source.class_names:
    match = match_classes(source.class_names, classes, source.name, owner, fix)
    if match.numbers is None:
      return source
    say(match.message)
    return Renumbered(source, match.numbers, classes)
  if source.num_classes != num_classes:
    raise ClassMismatch(
      f'{source.name} has {source.num_classes} classes, {owner} has '
      f'{num_classes}: they must be the same classes'
    )
  if how == 'numbers' and classes and source.class_names:
    same = list(classes) == list(source.class_names)
    if not same:
      say(
        f'class i of {source.name} is taken for class i of {owner}, although '
        f'the names differ: {source.class_names[0]!r}, ... and '
        f'{classes[0]!r}, ...'
      )
  elif classes or source.class_names:
    unnamed, named = owner, source.name
    if classes:
      unnamed, named = named, unnamed
    say(
      f'the class names of {unnamed} are unknown: its class i is taken for '
      f'class i of {named}'
    )
  return source


class Renumbered(Source):
  """A source whose labels are numbered as in another list of classes.

  Args:
    parent: the source.
    numbers: for each class of the parent its number in the list.
    classes: the list.
  """

  def __init__(
    self, parent: Source, numbers: Sequence[int], classes: Sequence[str]
  ):
    self._parent, self._numbers = parent, list(numbers)
    self.name, self.class_names = parent.name, list(classes)
    self.num_classes, self.multi_label = len(classes), parent.multi_label
    self.image_shape, self.in_memory = parent.image_shape, parent.in_memory
    self.fingerprint, self.summary = parent.fingerprint, parent.summary
    self.checked = parent.checked

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, i: int) -> dict[str, Any]:
    example = self._parent[i]
    label = example['label']
    if isinstance(label, dict):  # a soft label, {class: probability}
      label = {self._numbers[c]: p for c, p in label.items()}
    elif isinstance(label, list):
      label = [self._numbers[c] for c in label]
    else:
      label = self._numbers[label]
    return {**example, 'label': label}

  def describe(self, i: int) -> str:
    return self._parent.describe(i)

  def earlier_fingerprint(self) -> str:
    return self._parent.earlier_fingerprint()

  def describe_files(self) -> list[str]:
    return self._parent.describe_files()

  def labels(self) -> np.ndarray | None:
    labels = self._parent.labels()
    return None if labels is None else np.array(self._numbers)[labels]

  def arrays(
    self, decoding: Decoding = DEFAULT_DECODING
  ) -> tuple[np.ndarray, np.ndarray]:
    images, labels = self._parent.arrays(decoding)
    if labels.ndim == 1:
      return images, np.array(self._numbers, np.int32)[labels]
    wider = np.zeros((len(labels), self.num_classes), labels.dtype)
    wider[:, self._numbers] = labels
    return images, wider
