"""The results of an ablation as a Markdown table."""

from collections.abc import Mapping
from typing import Any


def table(found: Mapping[str, Any]) -> str:
  """Markdown: a row a variant; mean and spread in per cent, runs, costs.

  GFLOPs are multiply-adds of a forward pass, as papers count them; img/s are
  of training.
  """
  columns = list(
    dict.fromkeys(c for v in found.values() for c in v.get('mean', ()))
  )
  costs = {
    'parameters': ('parameters', ',.0f'),
    'GFLOPs': ('gmacs', '.3g'),
    'img/s': ('img_per_sec', ',.0f'),
  }
  costs = {
    k: v for k, v in costs.items() if any(v[0] in x for x in found.values())
  }
  rows = [['variant', *columns, 'runs', *costs]]
  for name, variant in found.items():
    cells = []
    for column in columns:
      mean = variant.get('mean', {}).get(column)
      std = variant.get('std', {}).get(column)
      cells.append(
        ''
        if mean is None
        else f'{100 * mean:.2f}'
        + ('' if std is None else f' ± {100 * std:.2f}')
      )
    failed = sum('error' in r for r in variant['runs'])
    cells.append(
      str(len(variant['runs']) - failed)
      + f' ({failed} diverged)' * bool(failed)
    )
    cells += [
      format(variant[key], form) if key in variant else ''
      for key, form in costs.values()
    ]
    rows.append([name, *cells])
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  line = lambda row: (
    '| '
    + ' | '.join(
      c.ljust(w) if i == 0 else c.rjust(w)
      for i, (c, w) in enumerate(zip(row, widths, strict=True))
    )
    + ' |'
  )
  rule = (
    '|'
    + '|'.join(
      '-' * (w + 2) if i == 0 else '-' * (w + 1) + ':'
      for i, w in enumerate(widths)
    )
    + '|'
  )
  return '\n'.join([line(rows[0]), rule, *map(line, rows[1:])])
