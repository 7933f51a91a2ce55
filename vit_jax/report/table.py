"""One table of runs: what differs, what they reached, what they cost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import io
import json
from typing import Any

from vit_jax import text
from vit_jax.report.runs import Run, differences

_MOST_KEYS = 8  # keys that differ and have a column


def columns(runs: Sequence[Run]) -> dict[str, list[str]]:
  """The table as {title: one cell a run}; a value that is missing is ''."""
  result = {'run': [run.name for run in runs]}
  model = [str(run.recipe.get('model.name', '')) for run in runs]
  result['model'] = model
  different = differences(runs)
  different.pop('model.name', None)
  for key in list(different)[:_MOST_KEYS]:
    result[key] = [show_value(x) for x in different[key]]
  result['steps'] = [f'{run.step:,}' for run in runs]
  results = [run.results() for run in runs]
  for name in dict.fromkeys(name for x in results for name in x):
    for metric, title, write in _METRICS:
      cells = [write(x.get(name, {}).get(metric)) for x in results]
      if any(cells):
        result[f'{name} {title}'] = cells
  for title, value, write in _COSTS:
    cells = [write(value(run)) for run in runs]
    if any(cells):
      result[title] = cells
  return result


def show_value(value: Any) -> str:
  """A value of a recipe, as text."""
  if isinstance(value, str):
    return value
  return json.dumps(value)


def _writer(form: str, scale: float = 1.0) -> Callable[[Any], str]:
  return lambda x: '' if x is None else format(scale * float(x), form)


def _last(key: str) -> Callable[[Run], Any]:
  """The newest value of a metric; None if a run has none."""

  def value(run: Run) -> Any:
    series = run.series(key)
    return series[-1][1] if series else None

  return value


_METRICS = (
  ('top1', 'top-1 %', _writer('.2f', 100)),
  ('top5', 'top-5 %', _writer('.2f', 100)),
  ('loss', 'loss', _writer('.4f')),
)
_COSTS = (
  ('train loss', _last('loss'), _writer('.4f')),
  ('parameters', lambda run: run.summary.get('parameters'), _writer(',.0f')),
  ('GMACs', lambda run: run.summary.get('gmacs'), _writer('.3g')),
  ('images/s', _last('img_per_sec'), _writer(',.0f')),
  (
    'time',
    lambda run: run.metrics[-1]['seconds'] if run.metrics else None,
    lambda x: '' if x is None else text.duration(x),
  ),
)


def rows(table: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, ...]]:
  """The cells of each run, of what `columns` returns."""
  return zip(*table.values(), strict=True)


def to_text(table: dict[str, list[str]]) -> str:
  """The table in aligned columns, for a terminal."""
  right = [i for i, cells in enumerate(table.values()) if are_numbers(cells)]
  return text.table(rows(table), header=list(table), right=right)


def to_markdown(table: dict[str, list[str]]) -> str:
  """The table in Markdown."""
  escape = lambda cells: [cell.replace('|', r'\|') for cell in cells]
  rules = ['--:' if are_numbers(cells) else '---' for cells in table.values()]
  lines = [escape(table), rules, *map(escape, rows(table))]
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'


def to_csv(table: dict[str, list[str]]) -> str:
  """The table as CSV, with numbers as programs read them."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(table)
  plain = [
    [x.replace(',', '') for x in cells] if are_numbers(cells) else cells
    for cells in table.values()
  ]
  writer.writerows(zip(*plain, strict=True))
  return file.getvalue()


def are_numbers(cells: Iterable[str]) -> bool:
  """Whether all cells are numbers, or empty, and not all are empty."""
  try:
    return bool([float(cell.replace(',', '')) for cell in cells if cell])
  except ValueError:
    return False
