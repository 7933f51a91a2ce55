"""The results of an ablation as a Markdown table."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vit_jax import text


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a metric is shown in the table.

  Attributes:
    key: key of the metric in the results.
    scale: factor on its value.
    digits: number of decimals.
  """

  key: str
  scale: float
  digits: int


# {title: metric}. top-1 is always in the table, the others if a variant has a
# published value of theirs.
METRICS = {
  'top-1': Metric('top1', 100.0, 2),
  'top-5': Metric('top5', 100.0, 2),
  'loss': Metric('loss', 1.0, 3),
}
_COSTS = {  # {title: (key in the results, format)}
  'parameters': ('parameters', ',.0f'),
  'GFLOPs': ('gmacs', '.3g'),
  'img/s': ('img_per_sec', ',.0f'),
}


def table(variants: Mapping[str, Any]) -> str:
  """The results as a Markdown table, with a row for each variant.

  The columns are the mean and standard deviation over the seeds (accuracies in
  percent), the published values that the variants have under 'published', the
  number of runs, and the costs. GFLOPs are the multiply-accumulates of a
  forward pass, as in papers; img/s is the speed of training.

  Args:
    variants: `Results.variants`.
  """
  published = {
    name: published_values(variant.get('overrides', {}))
    for name, variant in variants.items()
  }
  shown = [m for m in METRICS if m == 'top-1' or _any_has(published, m)]
  # Columns from the recipe's `measure` are always shown.
  columns = dict.fromkeys(
    column
    for variant in variants.values()
    for column in variant.get('mean', ())
    if (metric := column.rpartition(' ')[2]) in shown or metric not in METRICS
  )
  others = (m for values in published.values() for m in values)
  beside = [
    m for m in dict.fromkeys((*shown, *others)) if _any_has(published, m)
  ]
  costs = {
    title: (key, form)
    for title, (key, form) in _COSTS.items()
    if any(key in variant for variant in variants.values())
  }
  header = ['variant', *columns, *(f'published {m}' for m in beside)]
  rows = [[*header, 'runs', *costs]]
  for name, variant in variants.items():
    row = [name, *(_score(variant, column) for column in columns)]
    for metric in beside:
      value = published[name].get(metric)
      row.append('' if value is None else str(value))
    row.append(_runs(variant))
    for key, form in costs.values():
      row.append(format(variant[key], form) if key in variant else '')
    rows.append(row)
  return text.markdown(rows)


def published_values(variant: Mapping[str, Any]) -> dict[str, Any]:
  """The published values of a variant.

  Args:
    variant: keys and values of the variant. 'published' is a top-1 accuracy in
      percent, or {metric or column: value}. A value may be a text, such as one
      with its standard deviation.

  Returns:
    {metric or column: value}; {} without 'published'.
  """
  value = variant.get('published')
  if value is None:
    return {}
  return dict(value) if isinstance(value, Mapping) else {'top-1': value}


def _any_has(published: Mapping[str, Any], metric: str) -> bool:
  """Whether a variant has a published value of a metric."""
  return any(metric in values for values in published.values())


def _score(variant: Mapping[str, Any], column: str) -> str:
  """The mean and standard deviation of a column as text; '' if unknown."""
  mean = variant.get('mean', {}).get(column)
  std = variant.get('std', {}).get(column)
  if mean is None:
    return ''
  metric = METRICS.get(column.rpartition(' ')[2], Metric('', 1.0, 3))
  text = f'{metric.scale * mean:.{metric.digits}f}'
  if std is not None:
    text += f' ± {metric.scale * std:.{metric.digits}f}'
  return text


def _runs(variant: Mapping[str, Any]) -> str:
  """The number of successful runs, and of diverged ones if there are any."""
  failed = sum('error' in run for run in variant['runs'])
  text = str(len(variant['runs']) - failed)
  return f'{text} ({failed} diverged)' if failed else text
