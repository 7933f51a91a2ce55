"""Reads the text of a file of labels as a table of cells."""

import csv
import dataclasses
import io
import json
from typing import Any

from etils import epath

from vit_jax.data.listing import is_image_name

# Titles of the column of files, the best first.
FILE_TITLES = (
  *('file', 'filename', 'file_name', 'filepath', 'file_path', 'path'),
  *('image', 'images', 'image_name', 'image_path', 'image_id', 'img'),
  *('photo', 'name', 'id', 'key'),
)
# The values of a column that stands for one class.
ONE_HOT = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'false': 0, 'true': 1}
_DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars'}


def decode_text(path: epath.Path) -> tuple[str, str]:
  """The text of a file and the name of its encoding."""
  data = path.read_bytes()
  if data.startswith((b'\xff\xfe', b'\xfe\xff')):
    return data.decode('utf-16'), 'UTF-16'
  nul = data[:200].count(0)
  if nul and nul >= len(data[:200]) // 3:  # UTF-16 without its mark
    little = data[1:2] == b'\0'
    return data.decode('utf-16-le' if little else 'utf-16-be'), 'UTF-16'
  try:
    return data.decode('utf-8-sig'), 'UTF-8'
  except UnicodeDecodeError:
    return data.decode('latin-1'), 'Latin-1'


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells; `lines` has the number of the line of each.

  A cell of JSON may be a list, and its numbers are no text.
  """

  title: list[str] | None
  rows: list[list[Any]]
  lines: list[int]
  form: str


def read_json(text: str) -> Table:
  try:
    values = json.loads(text)
  except json.JSONDecodeError as e:
    try:  # one object a line
      values = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError:
      raise ValueError(f'is not JSON: {e}') from e
  if isinstance(values, dict) and not any(
    isinstance(v, dict) for v in values.values()
  ):
    rows = [[key, value] for key, value in values.items()]
    return Table(['file', 'label'], rows, list(range(1, len(rows) + 1)), '')
  if isinstance(values, dict):
    values = [
      {'file': key, **value} if isinstance(value, dict) else value
      for key, value in values.items()
    ]
  objects = values if isinstance(values, list) else []
  if not objects or not all(isinstance(value, dict) for value in objects):
    raise ValueError(
      'must be an object {"x.jpg": label or [labels]}, or objects such as '
      '{"file": "x.jpg", "label": label}'
    )
  title = list(dict.fromkeys(key for value in objects for key in value))
  rows = [[value.get(key) for key in title] for value in objects]
  return Table(title, rows, list(range(1, len(rows) + 1)), '')


def read_table(
  text: str, file_column: str | None, label_column: str | None
) -> Table:
  lines = [(i, x) for i, x in enumerate(text.splitlines(), 1) if x.strip()]
  if not lines:
    raise ValueError('the file is empty')
  first = lines[0][1]
  delimiter = min(
    (x for x in _DELIMITERS if x in first), key=first.index, default=None
  )
  if delimiter is None:
    cells = [(i, line.strip().rsplit(None, 1)) for i, line in lines]
    form = ', separated by blanks'
  else:
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
    try:
      cells = [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as e:
      raise ValueError(f'line {reader.line_num}: {e}') from e
    form = f', separated by {_DELIMITERS[delimiter]}'
  rows = [[cell.strip() for cell in row] for _, row in cells]
  numbers = [i for i, _ in cells]
  declared = [
    word
    for column in (file_column, *(label_column or '').split(','))
    if (word := (column or '').strip()) and not word.isdigit()
  ]
  if declared or _is_title(rows):
    return Table(rows[0], rows[1:], numbers[1:], f'{form}, with a title line')
  return Table(None, rows, numbers, form)


def _is_title(rows: list[list[str]]) -> bool:
  """Whether the first row names the columns."""
  first, others = rows[0], rows[1:]
  if any(is_image_name(cell) for cell in first) or not others:
    return False
  if any(cell.lower() in FILE_TITLES for cell in first):
    return True
  if all(any(is_image_name(cell) for cell in row) for row in others):
    return True
  return not any(cell.lower() in ONE_HOT for cell in first[1:]) and all(
    cell.lower() in ONE_HOT for row in others for cell in row[1:]
  )
