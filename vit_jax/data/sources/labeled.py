"""Images of a folder or tar file whose labels are in a file of their own.

The official validation set of ImageNet is such: 50,000 images in one tar or
folder, and labels in a text file. The labels file names the images (see
`vit_jax.data.labels`), or has one label for each image in the order of their
names: a word on each line, or a JSON list, as ReaL's `real.json`.
"""

import json
import os
import re
from typing import Any

from vit_jax.data.identity import describe_list, fingerprint
from vit_jax.data.label_table import decode_text
from vit_jax.data.labels import Label, read_labels
from vit_jax.data.listing import File, list_images, report
from vit_jax.data.names import normalized, printable
from vit_jax.data.pack_inputs import Item, entries_of
from vit_jax.data.sources.source import Source, checked_index
from vit_jax.files import as_path

_WHOLE = re.compile(r'-?(0|[1-9][0-9]*)')


class LabeledFiles(Source):
  """All images of a folder or tar file, in the order of their names.

  Args:
    path: of the folder, or of a tar that is not compressed.
    labels: path of the file of labels.
    num_classes: number of classes that class numbers belong to.
    class_names: their names, by which labels that are names get numbers; None
      numbers them in sorted order.

  Raises:
    ValueError: an image has no label or several lines, a label has no image, or
      a class number is not below `num_classes`.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    labels: str | os.PathLike,
    num_classes: int,
    class_names: list[str] | None = None,
  ):
    listing = list_images(path)
    self._files = sorted(listing.files, key=lambda file: file.name)
    if not self._files:
      raise ValueError(f'{path} has no images')
    self.name = f'{path} with {as_path(labels).name}'
    self.summary = f'{path}: {len(self._files):,} images'
    report(self.summary, True)
    ordered = _read_ordered(labels)
    if ordered is None:
      entries = _read_named(labels, self._files)
    else:
      entries = _check_number(ordered, self._files, labels)
    self.multi_label = any(isinstance(x, list) for x in entries)
    values = [x if isinstance(x, list) else [x] for x in entries]
    self.num_classes, self.class_names = num_classes, class_names
    numbers = self._numbers(values, labels)
    self._labels = numbers if self.multi_label else [x[0] for x in numbers]
    self.fingerprint = fingerprint('labeled', self._lines(), numbers)

  def _numbers(self, values: list[list[Label]], labels: Any) -> list[list[int]]:
    """The class numbers of labels that are names or numbers."""
    flat = {x for value in values for x in value}
    if len({type(x) for x in flat}) > 1:
      raise ValueError(
        f'{labels} has class numbers and class names: write one of them'
      )
    if all(isinstance(x, int) for x in flat):
      wrong = sorted(x for x in flat if not 0 <= int(x) < self.num_classes)
      if wrong:
        raise ValueError(
          f'{labels}: the class number {wrong[0]} is not in '
          f'[0, {self.num_classes}). Classes are numbered from 0, in the order '
          'of the outputs'
        )
      return [[int(x) for x in value] for value in values]
    names = sorted({normalized(str(x)) for x in flat})
    self.num_classes, self.class_names = len(names), names
    number = {name: i for i, name in enumerate(names)}
    return [[number[normalized(str(x))] for x in value] for value in values]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = checked_index(i, len(self))
    file = self._files[i]
    return {'image': file.read(), 'label': self._labels[i], 'id': file.name}

  def _lines(self) -> list[str]:
    return [f'{normalized(f.name)}, {f.size} bytes' for f in self._files]

  def describe_files(self) -> list[str]:
    return describe_list(self._lines())

  def describe(self, i: int) -> str:
    file = self._files[i]
    path = printable(file.path)
    return path if file.offset < 0 else f'{path}:{file.name}'


def _read_ordered(path: str | os.PathLike) -> list[Any] | None:
  """The labels of a file that names no images; None if it names them."""
  path = as_path(path)
  if not path.is_file():
    raise ValueError(f'the labels file {path} does not exist')
  try:
    text, _ = decode_text(path)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  if text.lstrip()[:1] == '[':
    try:
      values = json.loads(text)
    except json.JSONDecodeError as e:
      raise ValueError(f'{path} is not JSON: {e}') from e
    if any(isinstance(x, dict) for x in values):
      return None
    for i, value in enumerate(values):
      for x in value if isinstance(value, list) else [value]:
        if isinstance(x, bool) or not isinstance(x, str | int):
          raise ValueError(
            f'{path}: entry {i} is {value!r}: must be a class number or name, '
            'or a list of them'
          )
    return values
  words = [line.split() for line in text.splitlines() if line.strip()]
  if any(len(x) != 1 or set(x[0]) & set(',;|') for x in words):
    return None
  labels = [x[0] for x in words]
  # As in `labels`, one '007' among numbers makes all of them names.
  if all(_WHOLE.fullmatch(x) for x in labels):
    return [int(x) for x in labels]
  return labels


def _check_number(
  labels: list[Any], files: list[File], path: str | os.PathLike
) -> list[Any]:
  if len(labels) != len(files):
    raise ValueError(
      f'{path} has {len(labels):,} labels for {len(files):,} images: it needs '
      'one for each image, in the order of their names, or the names'
    )
  return labels


def _read_named(path: str | os.PathLike, files: list[File]) -> list[Any]:
  """The labels of a file that names the images, in the order of the files."""
  labels = read_labels(path)
  try:
    values, unused = entries_of([Item(x, x.name) for x in files], labels)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  if unused:
    raise ValueError(
      f'{path}: {len(unused):,} names are no image, such as {unused[0]}'
    )
  if labels.class_names:  # one column for each class
    names = labels.class_names
    values = [[names[int(x)] for x in value] for value in values]
  if labels.multi_label:
    return [list(dict.fromkeys(value)) for value in values]
  return [value[0] for value in values]
