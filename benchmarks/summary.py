"""One table of all models from the JSON of `inference` or `train_step`.

  python -m benchmarks.train_step --json train.json
  python -m benchmarks.summary train.json

A cell of a peer is the speed of this package relative to it: by wall time, and
in parentheses by CPU seconds. MFU is the work of the model's own products as a
share of the rate of a large product, the fastest one of the same run.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import re

from benchmarks import models, turns

_OURS = 'vit_jax'
_TITLE = re.compile(
  rf'{models.PRODUCTS}\w+|[^,]+, (inference|training), batch \d+, \w+'
)


def tables(path: str | os.PathLike) -> dict[str, str]:
  """Markdown tables by what was measured, such as 'training, float32'.

  Args:
    path: a file that `models.main` has written.

  Raises:
    ValueError: another benchmark has written the file.
  """
  _, groups = turns.read_json(path)
  others = [t for t in groups if not _TITLE.fullmatch(t)]
  if others:
    raise ValueError(
      f'{path} has the table {others[0]!r}, which is none of a model: give a '
      'file of `benchmarks.inference` or `benchmarks.train_step`'
    )
  rates = {
    title.removeprefix(models.PRODUCTS): turns.best_rate(measured)
    for title, measured in groups.items()
    if title.startswith(models.PRODUCTS)
  }
  sections: dict[str, dict[tuple[str, str], Sequence[turns.Measured]]] = {}
  for title, measured in groups.items():
    if not title.startswith(models.PRODUCTS):
      model, what, batch, dtype = title.split(', ')
      key = model, batch.removeprefix('batch ')
      sections.setdefault(f'{what}, {dtype}', {})[key] = measured
  return {
    title: _table(rows, title.split(', ')[0], rates[title.split(', ')[1]])
    for title, rows in sections.items()
  }


def _table(
  rows: Mapping[tuple[str, str], Sequence[turns.Measured]],
  what: str,
  tflops: float,
) -> str:
  """One table.

  Args:
    rows: the candidates of each model and batch.
    what: 'inference' or 'training'.
    tflops: TFLOP/s of the large product.
  """
  peers = list(
    dict.fromkeys(
      m.candidate.name
      for measured in rows.values()
      for m in measured
      if m.candidate.name != _OURS
    )
  )
  head = ['model', 'batch', 'img/s', 'MFU', *(f'to {p}' for p in peers), 'MB']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  for (model, batch), measured in rows.items():
    by_name = {m.candidate.name: m for m in measured}
    ours = by_name[_OURS]
    cells = [_speed(by_name.get(peer), ours) for peer in peers]
    rate = turns.best_rate([ours])
    share = models.share_of_peak(what, measured, rate, tflops)
    memory = ', '.join(
      f'{by_name[name].megabytes:.0f}'
      for name in (_OURS, 'timm')
      if name in by_name
    )
    row = [
      model,
      batch,
      f'{rate:.3g}',
      f'{share:.2f}' if share else '',
      *cells,
      memory,
    ]
    lines.append('| ' + ' | '.join(row) + ' |')
  return '\n'.join(lines)


def _speed(peer: turns.Measured | None, ours: turns.Measured) -> str:
  """How much faster this package is than a peer."""
  if peer is None:
    return ''
  if not peer.wall or not ours.wall:
    return 'failed'
  wall, cpu = (turns.speed(peer, ours, clock) for clock in ('wall', 'cpu'))
  return f'{wall:.2f} ({cpu:.2f})'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('json', metavar='FILE')
  args = parser.parse_args()
  for title, table in tables(args.json).items():
    print(f'\n{title}\n\n{table}')


if __name__ == '__main__':
  main()
