"""Finds the columns of files and of labels in a table; refuses unclear ones.

Columns are counted from 0 here, and from 1 in messages.
"""

from collections.abc import Sequence
import re

from vit_jax.data.label_table import FILE_TITLES, ONE_HOT, Table
from vit_jax.data.listing import is_image_name
from vit_jax.data.splits import SPLIT_FOLDERS

# Titles of the column of labels, the best first.
LABEL_TITLES = (
  *('label', 'labels', 'class', 'classes', 'class_name', 'category'),
  *('target', 'species', 'tag', 'tags', 'label_name', 'class_id', 'label_id'),
)
_NUMBERED = re.compile(r'(label|class|tag)[_ ]?\d+')


# Titles of a column that says to which split an image belongs.
_SPLIT_TITLE = re.compile(
  r'(data[_ ]?)?(split|subset|partition)|is[_ ](val|valid|test|train)\w*'
)


def find_files(table: Table, width: int, declared: str | None) -> int:
  """The column of files: as declared, by its title, or by its cells."""
  if declared:
    return _column(table, width, declared)
  title = [str(cell).lower() for cell in table.title or ()]
  for word in FILE_TITLES:
    if word in title:
      return title.index(word)
  for c in range(width):
    if all(len(r) > c and is_image_name(str(r[c])) for r in table.rows):
      return c
  return 0


def find_labels(
  table: Table,
  width: int,
  files: int,
  declared: str | None,
  kind: str | None,
) -> tuple[list[int], str]:
  """The columns of labels, and words on the columns that are not used."""
  rest = [c for c in range(width) if c != files]
  if not rest:
    raise ValueError(
      'it has one column: it needs that of the files and that of the labels'
    )
  if declared:
    columns = [_column(table, width, x) for x in declared.split(',')]
    if files in columns:
      raise ValueError(
        f'column {files + 1} has the files and cannot have the labels: declare '
        'the column of files too, with file_column (--file-column)'
      )
  elif table.title is None or kind == 'one-hot':
    columns = rest
  else:
    title = [str(cell).lower() for cell in table.title]
    numbered = [
      c for c in rest if c < len(title) and _NUMBERED.fullmatch(title[c])
    ]
    best = next((title.index(w) for w in LABEL_TITLES if w in title), None)
    if best is not None and best != files:
      refuse_twice(title[best], title)
      columns = [best]
    elif len(rest) == 1 or (rest and all_one_hot(table, rest)):
      columns = rest
    elif numbered:
      columns = numbered
    elif rest and width > len(title):
      columns = rest  # more labels than titles
    else:
      raise ValueError(
        f'which of the columns {", ".join(map(str, table.title))} has the '
        'label? Name it with label_column (--label-column), or name all that '
        'have 0 and 1 for a class each, as A,B'
      )
  unused = [c for c in rest if c not in columns]
  _refuse_splits(table, unused)
  if not unused or table.title is None:
    return columns, ''
  names = [str(table.title[c]) for c in unused if c < len(table.title)]
  return columns, f'; not used: {", ".join(n or "untitled" for n in names)}'


def _column(table: Table, width: int, declared: str) -> int:
  """The position of a column that is declared by its title or number."""
  declared = declared.strip()
  title = [str(cell) for cell in table.title or ()]
  if declared in title:
    refuse_twice(declared, title)
    return title.index(declared)
  if declared.isdecimal() and 1 <= int(declared) <= width:
    return int(declared) - 1
  raise ValueError(
    f'there is no column {declared!r}; there are '
    + (', '.join(title) if title else f'the columns 1 to {width}')
  )


def refuse_twice(name: str, title: Sequence[str]) -> None:
  """Raises ValueError if several columns have this title."""
  if list(title).count(name) > 1:
    raise ValueError(
      f'{list(title).count(name)} columns are called {name!r}: give them '
      'different titles, or declare the columns by their numbers'
    )


def refuse_long_rows(table: Table, width: int) -> None:
  """Raises ValueError for cells beyond a title that covers other rows."""
  size = len(table.title or ())
  if not size or width == size or size < 2:
    return
  long = [i for i, row in enumerate(table.rows) if any(row[size:])]
  if long and len(long) < len(table.rows) and _has_label_title(table):
    raise ValueError(
      f'line {table.lines[long[0]]} has more cells than the title line: put '
      'text that has the delimiter into quotes, and several labels into one '
      "cell, 'a;b'"
    )


def _has_label_title(table: Table) -> bool:
  return any(str(cell).lower() in LABEL_TITLES for cell in table.title or ())


def _refuse_splits(table: Table, unused: Sequence[int]) -> None:
  """Raises ValueError if an unused column divides the rows into splits."""
  for c in unused:
    cells = {str(r[c]).lower() for r in table.rows if c < len(r) and r[c]}
    title = [str(cell).lower() for cell in table.title or ()]
    named = c < len(title) and _SPLIT_TITLE.fullmatch(title[c])
    if len(cells) > 1 and (named or cells <= SPLIT_FOLDERS.keys()):
      raise ValueError(
        f'column {c + 1} has the splits {", ".join(sorted(cells)[:5])}, which '
        'would be mixed: keep the lines and images of one split, and name it '
        'with --split'
      )


def all_one_hot(table: Table, columns: Sequence[int]) -> bool:
  """Whether all cells of some columns stand for no or yes."""
  return all(
    c < len(row) and str(row[c]).lower() in ONE_HOT
    for row in table.rows
    for c in columns
  )
