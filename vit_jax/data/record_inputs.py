"""Images with labels of their own, as files of records have them."""

from collections.abc import Sequence
import dataclasses
import os
import re
from typing import Any

from vit_jax.data.label_columns import LABEL_TITLES
from vit_jax.data.labels import Label, Labels, understand
from vit_jax.data.listing import File
from vit_jax.data.names import normalized, printable
from vit_jax.data.splits import SPLIT_FOLDERS

# The usual names of the field of the label, the best first.
LABEL_FIELDS = (
  *('image/class/synset', 'image/class/label', 'cls', *LABEL_TITLES),
  *('fine_label', 'image/class/text'),
)
FLAT = ''  # the split of files that name none


@dataclasses.dataclass(frozen=True)
class Record:
  """An image of a file of records.

  Attributes:
    file: where it is read; its name is unique.
    stored_name: the file name that the record has for it; '' if it has none.
    labels: as they stand in the record.
  """

  file: File
  stored_name: str
  labels: list[Label]


@dataclasses.dataclass(frozen=True)
class Records:
  """What an input holds.

  Attributes:
    root: the input.
    splits: {split: images}.
    class_names: that the labels are numbers of; None if there are none.
  """

  root: str
  splits: dict[str, list[Record]]
  class_names: list[str] | None = None


def split_of(name: str) -> str:
  """The split that the name of a file or its folders tells; '' if none."""
  for component in reversed(name.lower().split('/')):
    for word in re.split('[^a-z]+', component):
      if word in SPLIT_FOLDERS:
        return SPLIT_FOLDERS[word]
  return FLAT


def record_labels(value: Any, where: str) -> list[Label]:
  """The labels of a record, as they stand."""
  values = value if isinstance(value, list) else [value]
  labels: list[Label] = []
  for x in values:
    if isinstance(x, bytes):
      x = printable(os.fsdecode(x))
    if not isinstance(x, str | int) or isinstance(x, bool):
      raise ValueError(
        f'{where}: the label {x!r} is neither a class name nor a whole number, '
        'nor a list of them'
      )
    labels.append(x)
  return labels


def name_records(
  inputs: Sequence[Records], kind: str | None
) -> tuple[list[dict[str, list[File]]], Labels]:
  """Gives images their names, and understands their labels together.

  The names are those that the records have, if they are unique.

  Args:
    inputs: of which the labels are of one kind.
    kind: of `labels.KINDS`, declared.

  Returns:
    {split: images} of each input, and the labels by the names.

  Raises:
    ValueError: two images have the same name, or a label is no class.
  """
  rows = [row for x in inputs for group in x.splits.values() for row in group]
  roots = ', '.join(dict.fromkeys(x.root for x in inputs))
  if not rows:
    raise ValueError(f'{roots} has no images')
  names = [x.class_names for x in inputs]
  if any(x != names[0] for x in names):
    raise ValueError(f'{roots}: they name different classes')
  stored = {normalized(row.stored_name) for row in rows}
  unique = len(stored) == len(rows) and '' not in stored
  name = lambda row: normalized(row.stored_name if unique else row.file.name)
  entries: dict[str, list[Label]] = {}
  for row in rows:
    if name(row) in entries:
      raise ValueError(
        f'two images are called {name(row)}: give their files other names, or '
        'pack the folder that holds them'
      )
    entries[name(row)] = row.labels
  named = lambda row: dataclasses.replace(row.file, name=name(row))
  return (
    [{s: list(map(named, g)) for s, g in x.splits.items()} for x in inputs],
    understand(entries, names[0], kind, roots),
  )
