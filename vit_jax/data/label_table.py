"""Reads the text of a file of labels as a table of cells."""

import csv
import dataclasses
import io
import json
import re
from typing import Any

from etils import epath

from vit_jax.data.listing import is_image_name

# Titles of the column of files, the best first.
FILE_TITLES = (
  *('file', 'filename', 'file_name', 'filepath', 'file_path', 'path'),
  *('image', 'images', 'image_name', 'image_path', 'image_id', 'img'),
  *('photo', 'name', 'id', 'key', 'url', 'image_url', 'link'),
)
# The values of a column that stands for one class.
ONE_HOT = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'false': 0, 'true': 1}
_DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars'}


def decode_text(path: epath.Path) -> tuple[str, str]:
  """The text of a file and the name of its encoding."""
  data = path.read_bytes()
  if data.startswith((b'PK\3\4', b'\xd0\xcf\x11\xe0')):
    raise ValueError('it is an Excel file or an archive: save it as CSV')
  if data.startswith((b'\xff\xfe\0\0', b'\0\0\xfe\xff')):
    return data.decode('utf-32'), 'UTF-32'
  if data.startswith((b'\xff\xfe', b'\xfe\xff')):
    return data.decode('utf-16'), 'UTF-16'
  nul = data[:200].count(0)
  if nul and nul >= len(data[:200]) // 3:  # UTF-16 without its mark
    little = data[1:2] == b'\0'
    return data.decode('utf-16-le' if little else 'utf-16-be'), 'UTF-16'
  if b'\0' in data:
    raise ValueError('it is no text: it has NUL characters')
  try:
    return data.decode('utf-8-sig'), 'UTF-8'
  except UnicodeDecodeError:
    pass
  if not any(0x80 <= byte < 0xA0 for byte in set(data)):
    return data.decode('latin-1'), 'Latin-1'
  try:
    return data.decode('cp1252'), 'Windows-1252'
  except UnicodeDecodeError as e:
    raise ValueError(
      'the text is neither UTF-8, UTF-16 nor Latin-1: save it as UTF-8'
    ) from e


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
    values = _load_json(text)
  except RecursionError as e:
    raise ValueError('is not JSON of labels: it is nested too deeply') from e
  except json.JSONDecodeError as e:
    try:  # one object a line
      values = [_load_json(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError):
      raise ValueError(f'is not JSON: {e}') from e
  if isinstance(values, dict) and not any(
    isinstance(v, dict) for v in values.values()
  ):
    rows = [[key, value] for key, value in values.items()]
    if _are_one_hot(list(values.values())):
      rows = [[key, *map(int, value)] for key, value in values.items()]
      return Table(None, rows, list(range(1, len(rows) + 1)), '')
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


def _are_one_hot(values: list[Any]) -> bool:
  """Whether lists say no or yes for each class, rather than list classes.

  As lists of classes, all images would have the same two classes.
  """
  return all(
    isinstance(value, list)
    and len(value) == len(values[0]) > 1
    and all(isinstance(x, int) and x in (0, 1) for x in value)
    for value in values
  )


def _load_json(text: str) -> Any:
  """The value of JSON, in which no key occurs twice with different values."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
      if values.setdefault(key, value) is not value and values[key] != value:
        raise ValueError(
          f'{key!r} occurs twice, with {values[key]!r} and {value!r}: keep one'
        )
    return values

  return json.loads(text, object_pairs_hook=unique)


def read_table(
  text: str, file_column: str | None, label_column: str | None
) -> Table:
  # Excel writes a first line such as 'sep=;'.
  declared = re.match(r'sep=([,;|\t])\r?\n', text)
  text = _without_comment(text[declared.end() :] if declared else text)
  lines = [(i, x) for i, x in enumerate(text.splitlines(), 1) if x.strip()]
  if not lines:
    raise ValueError('the file is empty')
  first = re.sub('"[^"]*"', '', lines[0][1])  # quoted text has no delimiters
  delimiter = (
    declared[1]
    if declared
    else min(
      (x for x in _DELIMITERS if x in first), key=first.index, default=None
    )
  )
  if delimiter is None:
    numbers = [i for i, _ in lines]
    cells = list(
      zip(numbers, _split_at_blanks([x for _, x in lines]), strict=True)
    )
    form = ', separated by blanks'
  else:
    reader = csv.reader(
      io.StringIO(text, newline=''), delimiter=delimiter, strict=True
    )
    try:
      cells = [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as e:
      raise ValueError(
        f'line {reader.line_num}: {e}. A quote is not closed, or has text '
        'beside it: write "" for a quote within quotes'
      ) from e
    form = f', separated by {_DELIMITERS[delimiter]}'
  rows = [[cell.strip() for cell in row] for _, row in cells]
  numbers = [i for i, _ in cells]
  titles = [
    word
    for column in (file_column, *(label_column or '').split(','))
    if (word := (column or '').strip()) and not word.isdigit()
  ]
  if titles or _is_title(rows):
    return Table(rows[0], rows[1:], numbers[1:], f'{form}, with a title line')
  return Table(None, rows, numbers, form)


def _without_comment(text: str) -> str:
  """The text without the sign of a comment before its title, or the comment.

  The number of lines stays.
  """
  first, *others = [x for x in text.splitlines() if x.strip()][:2] or ['']
  title = first.strip().lstrip('#').strip()
  if first.strip() == title or any(map(is_image_name, _words(first))):
    return text
  has_cells = any(x in title for x in _DELIMITERS)
  if not has_cells and others and any(x in others[0] for x in _DELIMITERS):
    title = ''
  return text.replace(first, title, 1)


def _words(line: str) -> list[str]:
  return re.split(r'[\s,;|"]+', line)


def _split_at_blanks(lines: list[str]) -> list[list[str]]:
  """The cells of lines without delimiters: a file and a class, or numbers.

  The name of a class may have blanks, and so may that of a file. Files are
  known by their suffix; several numbers are a cell each.
  """
  words = [line.split() for line in lines]
  titled = not any(map(is_image_name, words[0]))
  rows = words[titled:]
  if not rows or not all(is_image_name(row[0]) for row in rows):
    return [line.strip().rsplit(None, 1) for line in lines]
  if all(re.fullmatch(r'-?\d+', x) for row in rows for x in row[1:]):
    return words
  return [line.strip().split(None, 1) for line in lines]


def _is_title(rows: list[list[str]]) -> bool:
  """Whether the first row names the columns."""
  first, others = rows[0], rows[1:]
  if any(is_image_name(cell) for cell in first):
    return False
  if any(cell.lower() in FILE_TITLES for cell in first):
    return True
  if not others:
    return False
  if all(any(is_image_name(cell) for cell in row) for row in others):
    return True
  for c, cell in enumerate(first):  # the title of a column of numbers
    if not cell.isdecimal() and all(
      c < len(row) and row[c].isdecimal() for row in others
    ):
      return True
  return not any(cell.lower() in ONE_HOT for cell in first[1:]) and all(
    cell.lower() in ONE_HOT for row in others for cell in row[1:]
  )
