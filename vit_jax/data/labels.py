"""Reads files of labels: tables (CSV) and JSON.

What a column means is declared, or detected from the column as a whole, so that
no cell decides alone: '007' among numbers makes the column one of names. What
was understood is in `Labels.summary`, which is logged.

  file,label          x.jpg,cat      one label for each image
                      x.jpg,cat;dog  several, in one column or in several
  file,cat,dog        x.jpg,0,1      a column for each class (one-hot)
  {"x.jpg": "cat"}, {"x.jpg": ["cat", "dog"]}, [{"file": "x.jpg", "label": 3}],
  or one such object a line

Columns are separated by commas, semicolons, tabs, bars or blanks. The text is
UTF-8, UTF-16 or, where it is neither, Latin-1.
"""

from collections.abc import Sequence
import dataclasses
import logging
import os
import re
from typing import Any
import urllib.parse

from vit_jax import files
from vit_jax.data.label_columns import (
  all_one_hot,
  find_files,
  find_labels,
  refuse_long_rows,
  refuse_twice,
)
from vit_jax.data.label_table import (
  ONE_HOT,
  Table,
  decode_text,
  read_json,
  read_table,
)
from vit_jax.data.names import look_alikes, normalized
from vit_jax.files import as_path
from vit_jax.weights.metadata import MOST_CLASSES

log = logging.getLogger(__name__)

KINDS = ('names', 'numbers', 'one-hot')
_FLOAT = re.compile(r'-?(0|[1-9]\d*)(\.0+)?')
# What spreadsheets and data frames write where there is no value.
_MISSING = {'nan', 'NaN', 'NAN', 'null', 'NULL', '#N/A', '<NA>', 'N/A'}
_MISSING |= {'None', 'NA', 'n/a', '?', '-'}
Label = str | int


@dataclasses.dataclass(frozen=True)
class Labels:
  """The labels of a file.

  Attributes:
    entries: {file: its labels}, class names or class numbers.
    multi_label: whether an image may have several labels, or none.
    class_names: of one-hot columns, in their order; else None.
    summary: what was understood.
  """

  entries: dict[str, list[Label]]
  multi_label: bool
  class_names: list[str] | None
  summary: str


def read_labels(
  path: str | os.PathLike,
  *,
  file_column: str | None = None,
  label_column: str | None = None,
  kind: str | None = None,
) -> Labels:
  """Reads a file of labels.

  Args:
    path: of the file.
    file_column: title, or number from 1, of the column of files; None finds it.
    label_column: the same of the column of labels, or of several, separated by
      commas.
    kind: of KINDS; None decides by the whole column.

  Raises:
    ValueError: there is no such file, or it can be read in several ways; the
      message names the line and what to declare.
  """
  path = as_path(path)
  if not path.exists():
    raise ValueError(f'labels_file={path} does not exist')
  try:
    files.check_regular(path)
  except OSError as e:
    raise ValueError(f'labels_file={path}: {e}') from e
  if kind is not None and kind not in KINDS:
    raise ValueError(
      f'the kind of labels {kind!r} is unknown; allowed: {", ".join(KINDS)}'
    )
  try:
    text, encoding = decode_text(path)
    first = text.lstrip()[:1]
    if path.suffix.lower() in ('.json', '.jsonl') or first in ('{', '['):
      table = read_json(text)
    else:
      table = read_table(text, file_column, label_column)
    labels = _understand(table, file_column, label_column, kind)
  except ValueError as e:
    raise ValueError(f'labels_file={path}: {e}') from e
  summary = f'{path.name} ({encoding}{table.form}): {labels.summary}'
  log.warning('%s', summary)
  return dataclasses.replace(labels, summary=summary)


def understand(
  entries: dict[str, list[Label]],
  class_names: list[str] | None,
  kind: str | None,
  source: str,
) -> Labels:
  """The labels that files of records hold.

  Args:
    entries: {image: its labels as they stand}.
    class_names: that the labels are numbers of; None if there are none.
    kind: of KINDS; None decides by all labels.
    source: of the labels, for messages.

  Raises:
    ValueError: a label is no class.
  """
  multi = any(len(labels) != 1 for labels in entries.values())
  listed = ', several or none for some images' if multi else ''
  if class_names:
    wrong = sorted(
      {str(x) for labels in entries.values() for x in labels}
      - set(map(str, range(len(class_names))))
    )
    if wrong:
      raise ValueError(
        f'{source}: the label {wrong[0]} is none of the {len(class_names)} '
        f'classes {class_names[0]}, ... (0 to {len(class_names) - 1}). A test '
        'set may be without labels: pack its other splits, with --split'
      )
    numbers: dict[str, list[Label]] = {
      name: [int(x) for x in labels] for name, labels in entries.items()
    }
    meaning = f'class numbers of {len(class_names)} names'
    labels = Labels(numbers, multi, class_names, f'labels: {meaning}{listed}')
  else:
    try:
      entries, meaning = _kind_of(entries, kind)
    except ValueError as e:
      raise ValueError(f'{source}: {e}') from e
    labels = Labels(entries, multi, None, f'labels: {meaning}{listed}')
  log.warning('%s: %s', source, labels.summary)
  return labels


def _understand(
  table: Table,
  file_column: str | None,
  label_column: str | None,
  kind: str | None,
) -> Labels:
  """The labels of a table: which columns, and what they mean."""
  if not table.rows:
    raise ValueError('the file has no labels')
  width = max(map(len, table.rows))
  refuse_long_rows(table, width)
  files = find_files(table, width, file_column)
  columns, unused = find_labels(table, width, files, label_column, kind)
  one_hot = kind == 'one-hot' or (
    kind is None and len(columns) > 1 and all_one_hot(table, columns)
  )
  seen: dict[str, tuple[list[Label], int]] = {}
  several = False
  for row, line in zip(table.rows, table.lines, strict=True):
    name = _file_key(row[files] if files < len(row) else '', line)
    if one_hot:
      labels: list[Any] = [
        k for k, c in enumerate(columns) if ONE_HOT[_cell(row, c, line).lower()]
      ]
    else:
      labels = list(dict.fromkeys(_cells(row, columns, line)))
      several |= any(isinstance(row[c], list) for c in columns if c < len(row))
    if name in seen and seen[name][0] != labels:
      raise ValueError(
        f'lines {seen[name][1]} and {line} give {name!r} different labels: '
        'keep one of them, or write its labels in one line'
      )
    seen[name] = labels, line
  entries = {name: labels for name, (labels, _) in seen.items()}
  multi = several or any(len(labels) > 1 for labels in entries.values())
  if not multi and not one_hot:
    _refuse_empty(seen)
  multi |= any(len(labels) != 1 for labels in entries.values())
  words = _words(table, columns)
  if one_hot:
    names = [str(table.title[c]) for c in columns] if table.title else None
    for name in names or ():
      refuse_twice(name, names or [])
    summary = f'one-hot over {len(columns)} columns'
    if multi:
      summary += ', several or no classes for some images'
    return Labels(entries, multi, names, summary + unused)
  entries, meaning = _kind_of(entries, kind)
  listed = ', several for an image' if multi else ''
  return Labels(entries, multi, None, f'{words}: {meaning}{listed}{unused}')


def _words(table: Table, columns: Sequence[int]) -> str:
  """'column 2' or 'columns 2, 3'."""
  if table.title is not None and not table.form:
    return 'labels'  # JSON has no columns
  numbers = ', '.join(str(c + 1) for c in columns[:10])
  return f'column{"s" if len(columns) > 1 else ""} {numbers}'


def _cell(row: list[Any], column: int, line: int) -> str:
  cell = str(row[column]) if column < len(row) else ''
  if cell.lower() not in ONE_HOT:
    raise ValueError(
      f'line {line}, column {column + 1}: {cell!r} is neither 0 nor 1'
    )
  return cell


def _cells(row: list[Any], columns: Sequence[int], line: int) -> list[Label]:
  """The labels in some cells of a row, as they stand."""
  labels: list[Label] = []
  for c in columns:
    cell = row[c] if c < len(row) else ''
    for value in cell if isinstance(cell, list) else [cell]:
      if isinstance(value, str):
        labels += [x.strip() for x in value.split(';') if x.strip()]
      elif isinstance(value, int) and not isinstance(value, bool):
        labels.append(value)
      elif value is not None:
        raise ValueError(
          f'entry {line}: the label {value!r} is neither a class name nor a '
          'whole number, nor a list of them'
        )
  return labels


def _file_key(cell: Any, line: int) -> str:
  """The name of a file as it is looked up."""
  if not isinstance(cell, str | int) or not str(cell).strip():
    raise ValueError(f'line {line} names no file')
  text = str(cell).strip()
  if re.match(r'https?://', text):  # the file that was downloaded
    text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
  return normalized(text.replace('\\', '/').removeprefix('./'))


def _refuse_empty(seen: dict[str, tuple[list[Label], int]]) -> None:
  for name, (labels, line) in seen.items():
    if not labels:
      raise ValueError(
        f'line {line} gives {name!r} no label, where all others have one: add '
        'it, or remove the line'
      )


def _joined(texts: set[str]) -> str:
  """A name that may be several, such as 'a|b', or 'a,b' where 'b' is one."""
  for text in sorted(texts):
    names = {x.strip() for x in text.split(',')} - {text}
    if '|' in text or texts & names or re.fullmatch(r'\[.*\]', text):
      return text
  return ''


def _kind_of(
  entries: dict[str, list[Label]], kind: str | None
) -> tuple[dict[str, list[Label]], str]:
  """Labels as numbers or names, by all of them, and the words for it."""
  labels = {x for value in entries.values() for x in value}
  texts = {str(x) for x in labels}
  if (
    kind != 'names'
    and all(isinstance(x, str) and _FLOAT.fullmatch(x) for x in labels)
    and any('.' in x for x in texts)
  ):
    # Tables in which a label was once missing have 1.0 for 1.
    entries = {
      k: [str(x).partition('.')[0] for x in value]
      for k, value in entries.items()
    }
    return _kind_of(entries, kind)
  whole = {x for x in texts if re.fullmatch(r'-?(0|[1-9]\d*)', x)}
  strings = {x for x in labels if isinstance(x, str)}
  from_json = len(strings) < len(labels)  # numbers are no text there
  numbers = whole == texts and not (from_json and strings)
  if kind == 'numbers' and whole != texts:
    raise ValueError(f'{min(texts - whole)!r} is no class number')
  if len(texts) < len(labels):
    both = min(
      str(x) for x in labels if isinstance(x, int) and str(x) in strings
    )
    raise ValueError(f'{both} is there as a number and as a name: write one')
  missing = sorted(texts & _MISSING)
  if missing and kind is None:
    raise ValueError(
      f'the label {missing[0]!r} is what tables write for a missing one: add '
      "the label, or declare that it is a name: kind='names' (--label-kind "
      'names)'
    )
  if kind == 'names' or (kind is None and not numbers) or not labels:
    named: dict[str, list[Label]] = {
      k: [normalized(str(x)) for x in value] for k, value in entries.items()
    }
    count = len({x for value in named.values() for x in value})
    why = ''
    odd = sorted(x for x in texts - whole if whole or x.isdigit())
    if odd and kind is None:
      why = f', not numbers because of {odd[0]!r}'
    alike = look_alikes({str(x) for value in named.values() for x in value})
    why += f', of which {alike} differ only in case or blanks' if alike else ''
    joined = _joined(texts)
    why += (
      f', of which {joined!r} may be several labels: write a;b'
      if joined
      else ''
    )
    return named, f'{count:,} class name{"" if count == 1 else "s"}{why}'
  values = sorted(int(x) for x in texts)
  if values[0] < 0 or values[-1] >= MOST_CLASSES:
    wrong = values[0] if values[0] < 0 else values[-1]
    raise ValueError(
      f'the class number {wrong} is not in [0, {MOST_CLASSES:,}). If the '
      "labels are names, declare it: kind='names' (--label-kind names)"
    )
  gaps = values[-1] + 1 - len(values)
  return {k: [int(x) for x in value] for k, value in entries.items()}, (
    f'class numbers {values[0]} to {values[-1]}'
    + (f', of which {gaps:,} from 0 on have no image' if gaps else '')
  )
