"""Writes numbers, tables and JSON as text."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import io
import json
import os
import shutil
import sys
import textwrap
from typing import Any, TextIO, cast
import zlib

QUIET = 'VIT_JAX_QUIET'  # what --quiet sets in the environment


def is_quiet() -> bool:
  """Whether only results and errors are printed: no progress and no notes."""
  return bool(os.environ.get(QUIET))


def note(line: str) -> None:
  """Prints a line for the user on stderr, unless the run is quiet."""
  if not is_quiet():
    line = for_terminal(f'note: {line}', sys.stderr)
    print(line, file=sys.stderr, flush=True)


def line_width() -> int:
  """Columns of the terminal; 80 in a pipe. COLUMNS=N sets another width."""
  return shutil.get_terminal_size((80, 24)).columns


def wrap(line: str) -> str:
  """A line for the terminal, continued on indented lines where it is longer."""
  return textwrap.fill(
    line, line_width(), subsequent_indent='  ', break_on_hyphens=False
  )


def for_terminal(lines: str, stream: TextIO | None = None) -> str:
  """Lines that are wrapped at words, if they are written to a terminal.

  In a pipe or a file every line stays whole, and so do escape codes.

  Args:
    lines: the text.
    stream: where it is written; None for the standard output.
  """
  stream = sys.__stdout__ if stream is None else stream
  if stream is None or not stream.isatty() or '\x1b' in lines:
    return lines
  return '\n'.join(
    wrap(line) if len(line) > line_width() else line
    for line in lines.split('\n')
  )


class Wrapping:
  """A stream whose long lines break between words, if it is a terminal."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, words: str) -> int:
    return self._stream.write(for_terminal(words, self._stream))

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def result_lines(as_json: bool) -> Iterator[None]:
  """Context manager: where the lines of a run go, whose results follow.

  With `as_json` they go to stderr, because the standard output is for the JSON.
  So do the lines of C++ libraries, such as Gloo, which write to descriptor 1.
  """
  if not as_json:
    with contextlib.redirect_stdout(cast(TextIO, Wrapping(sys.stdout))):
      yield
    return
  sys.stdout.flush()
  output = os.dup(1)
  os.dup2(2, 1)
  try:
    with contextlib.redirect_stdout(sys.stderr):
      yield
  finally:
    os.dup2(output, 1)
    os.close(output)


def shortened(value: object, most: int = 200) -> str:
  """The text of a value that a file gave, with `most` characters at most."""
  words = str(value)
  return words if len(words) <= most else f'{words[: most - 3]}...'


def counted(number: float, word: str) -> str:
  """'1 image', '1,204 images', '2 classes', '0.5 epochs'."""
  shown = f'{number:,}' if isinstance(number, int) else f'{number:.4g}'
  if shown != '1':
    word += 'es' if word.endswith('s') else 's'
  return f'{shown} {word}'


def duration(seconds: float) -> str:
  """A time as '42s', '3m10s', '5h02m' or '3d04h'; 0 if it is negative."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  minutes, seconds = divmod(seconds, 60)
  if minutes < 60:
    return f'{minutes}m{seconds:02d}s'
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f'{hours}h{minutes:02d}m'
  days, hours = divmod(hours, 24)
  return f'{days}d{hours:02d}h'


def json_checksum(values: Any) -> int:
  """A checksum (CRC-32) of JSON values, whatever the order of their keys."""
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def shape(dimensions: Iterable[int]) -> str:
  """'3x224x224' of (3, 224, 224); 'scalar' of ()."""
  return 'x'.join(map(str, dimensions)) or 'scalar'


def table(
  rows: Iterable[Sequence[object]],
  *,
  header: Sequence[str] = (),
  right: Sequence[int] = (),
  width: int = 10_000,
) -> str:
  """Aligned columns of plain text, without borders or colors.

  Args:
    rows: cells of each row; they are converted by `str`.
    header: titles of the columns; () for a table without titles.
    right: numbers of the columns, from 0, that are aligned to the right.
    width: columns of a line; longer cells of the first column are folded, after
      a slash if they have one.

  Returns:
    Lines without trailing spaces; '' if there is nothing to show.
  """
  import rich.box
  import rich.console
  import rich.table
  import rich.text

  rows = [[str(cell) for cell in row] for row in rows]
  if not rows and not header:
    return ''
  columns = len(header) if header else len(rows[0])
  others = zip(*([header] if header else []), *rows, strict=True)
  room = width - sum(2 + max(map(len, cells)) for cells in list(others)[1:])
  rows = [[_folded(row[0], room), *row[1:]] for row in rows]
  result = rich.table.Table(
    box=None, show_header=bool(header), padding=(0, 2, 0, 0), pad_edge=False
  )
  for i in range(columns):
    result.add_column(
      rich.text.Text(header[i]) if header else '',
      justify='right' if i in right else 'left',
      no_wrap=bool(i),
      overflow='fold',
    )
  for row in rows:
    # Text, so that brackets in a cell are not read as rich markup.
    result.add_row(*map(rich.text.Text, row))
  console = rich.console.Console(
    file=io.StringIO(), width=width, color_system=None
  )
  with console.capture() as capture:
    console.print(result)
  return '\n'.join(line.rstrip() for line in capture.get().splitlines())


def _folded(cell: str, room: int) -> str:
  """A path in lines of `room` characters, each but the last ending in '/'."""
  end = cell.rfind('/', 0, room) + 1
  if len(cell) <= room or not end:
    return cell
  return f'{cell[:end]}\n  {_folded(cell[end:], room - 2)}'


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns are also aligned in plain text.

  Args:
    rows: the header and the rows; all have the same number of cells.
  """
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

  def line(row):
    cells = [
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f'| {" | ".join(cells)} |'

  marks = [
    '-' * (width + 2) if i == 0 else '-' * (width + 1) + ':'
    for i, width in enumerate(widths)
  ]
  rule = f'|{"|".join(marks)}|'
  return '\n'.join([line(rows[0]), rule, *map(line, rows[1:])])
