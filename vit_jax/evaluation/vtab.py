"""The table of VTAB-1k: accuracies by group, beside published ones."""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from etils import epath

from vit_jax import text
from vit_jax.data.sources.vtab import TASKS
from vit_jax.files import write_atomically

GROUPS = ('natural', 'specialized', 'structured')
# Accuracies in per cent of Vision Transformers that were pre-trained on JFT or
# ImageNet-21k, in the order of TASKS (arXiv:2010.11929, appendix, the breakdown
# of VTAB-1k by task).
_ACCURACIES = {
  'H/14 JFT': (
    *(95.3, 85.5, 75.2, 99.7, 97.2, 65.0, 88.9),
    *(83.3, 96.7, 91.4, 76.6),
    *(91.7, 63.8, 53.1, 79.4, 63.3, 84.5, 33.2, 51.2),
  ),
  'L/16 JFT': (
    *(95.4, 81.9, 74.3, 99.7, 96.7, 63.5, 87.4),
    *(83.6, 96.5, 89.7, 77.1),
    *(86.4, 63.1, 49.7, 74.5, 60.5, 82.2, 36.2, 51.1),
  ),
  'L/16 I21k': (
    *(90.8, 84.1, 74.1, 99.3, 92.7, 61.0, 80.9),
    *(82.5, 95.6, 85.2, 75.3),
    *(70.3, 56.1, 41.9, 74.7, 64.9, 79.9, 30.5, 41.7),
  ),
}
PUBLISHED = {
  model: dict(zip(TASKS, values, strict=True))
  for model, values in _ACCURACIES.items()
}
Results = Mapping[str, Mapping[str, Any]]


def mean_accuracy(
  accuracies: Mapping[str, float], tasks: Iterable[str]
) -> float | None:
  """The mean of the tasks that have an accuracy; None if none has."""
  values = [accuracies[task] for task in tasks if task in accuracies]
  return sum(values) / len(values) if values else None


def table(results: Results) -> str:
  """The results as a Markdown table, group by group, then the mean of all.

  The mean of all is that of the tasks, as published, not that of the groups. As
  long as tasks are missing, every column has the mean of the others, and the
  row says how many there are.

  Args:
    results: {task: {'top1': fraction, 'images': number of test images}} of the
      tasks that are done, or {task: {'error': message}}.
  """
  own = {
    task: 100 * result['top1']
    for task, result in results.items()
    if 'top1' in result
  }
  columns = [own, *PUBLISHED.values()]
  rows = [['task', 'top-1', 'test images', *PUBLISHED]]
  for group in GROUPS:
    tasks = [name for name, task in TASKS.items() if task.group == group]
    for task in tasks:
      result = results.get(task, {})
      rows.append(
        [
          task,
          'diverged' if 'error' in result else _cell(own.get(task), 2),
          f'{result["images"]:,}' if 'images' in result else '',
          *(_cell(column[task]) for column in PUBLISHED.values()),
        ]
      )
    rows.append(_means(group, tasks, columns))
  rows.append(_means('all tasks', list(TASKS), columns))
  return text.markdown(rows)


def _means(
  name: str, tasks: Sequence[str], columns: Sequence[Mapping[str, float]]
) -> list[str]:
  """The row with the means of some tasks."""
  own = columns[0]
  done = [task for task in tasks if task in own]
  of = '' if len(done) in (0, len(tasks)) else f' ({len(done)} of {len(tasks)})'
  mean, *published = (mean_accuracy(c, done or tasks) for c in columns)
  cells = [f'**{_cell(x)}**' for x in published]
  return [
    f'**{name}{of}**',
    f'**{_cell(mean, 2)}**' if done else '',
    '',
    *cells,
  ]


def _cell(value: float | None, digits: int = 1) -> str:
  return '' if value is None else f'{value:.{digits}f}'


def write(results: Results, directory: epath.Path) -> None:
  """Writes vtab.json with the results and vtab.md with the table."""
  directory.mkdir(parents=True, exist_ok=True)
  write_atomically(
    directory / 'vtab.json', json.dumps(results, indent=2) + '\n'
  )
  write_atomically(directory / 'vtab.md', table(results) + '\n')
