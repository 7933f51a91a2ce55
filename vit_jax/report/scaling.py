"""Figures of many runs: accuracy against data, compute and throughput.

As in the figures of ViT (arXiv:2010.11929, figures 3 to 5), DeiT
(arXiv:2012.12877, figure 1) and DeepViT (arXiv:2103.11886: the fraction of
similar blocks against the width or the depth), and table 8 of ViT.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import numbers
import os
from typing import Any

from etils import epath
import numpy as np

from vit_jax.analysis.plots import new_figure, save_figure
from vit_jax.analysis.published import POSITIONS
from vit_jax.report.runs import Run

# {quantity: label of the horizontal axis}
QUANTITIES = {
  'data': 'training images',
  'compute': 'compute of training (GFLOPs)',
  'parameters': 'parameters',
  'throughput': 'images/s in training',
}
# Operations of a training step for each multiply-accumulate of the forward
# pass: 2 in the forward pass and 4 in the backward pass.
_FLOPS_PER_MAC = 6.0


@dataclasses.dataclass(frozen=True)
class Point:
  """One run in a figure.

  Attributes:
    run: its name.
    model: its model, with the fields that tell models of one name apart.
    values: {key of QUANTITIES, or of the recipe: value}; what a run does not
      say is missing.
    metric: what `value` is, such as 'top-1 accuracy (%)' or '10-shot'.
    value: an accuracy in per cent, or what an ablation measured.
  """

  run: str
  model: str
  values: Mapping[str, float]
  metric: str
  value: float


def points(
  runs: Sequence[Run],
  eval_set: str = '',
  *,
  metric: str = '',
  quantity: str = 'data',
) -> list[Point]:
  """What the summaries of finished runs say.

  Args:
    runs: finished runs.
    eval_set: name of the set of the accuracy; '' is the first of each run.
    metric: column that an ablation measured (`Run.measured`), such as a
      few-shot accuracy, instead of the accuracy.
    quantity: key of QUANTITIES, or a key of the recipe with a number, such as
      'model.width', by whose values models are not told apart.

  Raises:
    ValueError: a run has not finished, or has no such set, metric or quantity.
  """
  models = _models(runs, quantity)
  result = []
  for run, model in zip(runs, models, strict=True):
    if not run.summary:
      raise ValueError(
        f'{run.workdir} has no summary.json of its last step: its run has not '
        'finished. Leave it out'
      )
    label, value = _value(run, eval_set, metric)
    values = _values(run)
    if quantity not in QUANTITIES:
      values[quantity] = _number(run, quantity)
    result.append(Point(run.name, model, values, label, value))
  return result


def _value(run: Run, eval_set: str, metric: str) -> tuple[str, float]:
  """What is on the vertical axis, and its value for a run."""
  if metric:
    if metric not in run.measured:
      raise ValueError(
        f'{run.workdir} has no metric {metric!r}; its ablation measured '
        f'{", ".join(run.measured) or "none"}'
      )
    return metric, run.measured[metric]
  results = run.results()
  name = eval_set or next(iter(results), '')
  if name not in results:
    raise ValueError(
      f'{run.workdir} has no eval set {name!r}; it has '
      f'{", ".join(results) or "none"}'
    )
  return 'top-1 accuracy (%)', 100 * results[name]['top1']


def _values(run: Run) -> dict[str, float]:
  summary = run.summary
  seen = run.step * run.recipe['data.batch_size']
  epochs = summary.get('epochs')
  macs, speed = summary.get('gmacs'), summary.get('img_per_sec')
  values: dict[str, Any] = {
    'data': round(seen / epochs) if epochs else None,
    'compute': _FLOPS_PER_MAC * macs * seen if macs else None,
    'parameters': summary.get('parameters'),
    'throughput': speed or None,
  }
  return {key: float(x) for key, x in values.items() if x is not None}


def _number(run: Run, key: str) -> float:
  value = run.recipe.get(key)
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise ValueError(
      f'quantity={key!r} is no number in {run.workdir}: it is {value!r}. '
      f'Allowed: {", ".join(QUANTITIES)}, and keys of the recipe with numbers, '
      'such as model.width'
    )
  return float(value)


def _models(runs: Sequence[Run], quantity: str) -> list[str]:
  """The names of the models, with the fields in which the runs differ.

  A field that follows from the quantity and the fields before it, such as the
  number of heads from the width, is left out.
  """
  chosen = [
    (
      str(run.recipe['model.name']),
      str(run.recipe.get(quantity)) if quantity not in QUANTITIES else '',
    )
    for run in runs
  ]
  names = [str(run.recipe['model.name']) for run in runs]
  keys = dict.fromkeys(
    key for run in runs for key in run.recipe if key.startswith('model.')
  )
  for key in keys:
    values = [str(run.recipe.get(key)) for run in runs]
    if len(set(zip(chosen, values, strict=True))) == len(set(chosen)):
      continue
    chosen = [(*x, v) for x, v in zip(chosen, values, strict=True)]
    names = [
      f'{name}, {key.removeprefix("model.")} {value}'
      if value != 'None'
      else name
      for name, value in zip(names, values, strict=True)
    ]
  return names


def plot_scaling(
  data: Sequence[Point], path: str | os.PathLike, *, quantity: str = 'data'
) -> epath.Path:
  """Draws the points against a quantity, with a line for each model.

  Args:
    data: of `points`.
    path: .png, .jpg, .svg or .pdf file to write.
    quantity: key of QUANTITIES, or a key of the recipe.

  Raises:
    ValueError: a run does not say the quantity.
  """
  for point in data:
    if quantity not in point.values:
      raise ValueError(f'{point.run}: its summary does not tell {quantity}')
  figure = new_figure(6.4, 4.2)
  axis = figure.subplots()
  models = dict.fromkeys(point.model for point in data)
  for i, model in enumerate(models):
    line = sorted(
      (p.values[quantity], p.value) for p in data if p.model == model
    )
    axis.plot(*zip(*line, strict=True), marker='os^Dv'[i % 5], label=model)
  axis.set_xscale('log')
  ticks = sorted({point.values[quantity] for point in data})
  if len(ticks) <= 6 and all(
    b >= 1.3 * a for a, b in itertools.pairwise(ticks)
  ):
    axis.set_xticks(ticks, [f'{x:,.6g}' for x in ticks])
    axis.minorticks_off()
  axis.set_xlabel(QUANTITIES.get(quantity, quantity))
  axis.set_ylabel(data[0].metric)
  axis.set_title(f'{len(data)} runs', fontsize=10)
  axis.grid(alpha=0.25, which='both')
  axis.legend(fontsize=8, frameon=False)
  return save_figure(figure, path)


@dataclasses.dataclass(frozen=True)
class PositionTable:
  """Position embeddings compared, as in table 8 of ViT (appendix D.4).

  Attributes:
    schemes, places: values of model.posemb and of model.posemb_at.
    measured: (4, 3) the mean over the runs of a cell in per cent; NaN where
      there is no run.
    published: (4, 3) the 5-shot accuracies of the paper for ViT-B/16 on JFT.
    metric: what was measured.
  """

  schemes: tuple[str, ...]
  places: tuple[str, ...]
  measured: np.ndarray
  published: np.ndarray
  metric: str


def position_table(
  runs: Sequence[Run], metric: str = '', eval_set: str = ''
) -> PositionTable:
  """The table of the position embeddings of runs.

  Args:
    runs: finished runs, such as those of configs/posemb_d3.py.
    metric, eval_set: as for `points`.

  Raises:
    ValueError: no run has one of the paper's position embeddings, or as for
      `points`.
  """
  schemes = tuple(dict.fromkeys(scheme for scheme, _ in POSITIONS))
  places = tuple(dict.fromkeys(place for _, place in POSITIONS))
  cells: dict[tuple[str, str], list[float]] = {}
  label = ''
  data = points(runs, eval_set, metric=metric)
  for run, point in zip(runs, data, strict=True):
    key = run.recipe.get('model.posemb'), run.recipe.get('model.posemb_at')
    key = str(key[0]), str(key[1] or places[0])
    if key in POSITIONS:
      cells.setdefault(key, []).append(point.value)
      label = point.metric
  if not cells:
    raise ValueError(
      'no run has one of the position embeddings of the table: model.posemb = '
      f'{", ".join(schemes)}'
    )
  table = lambda values: np.array(
    [
      [float(np.mean(values.get((s, p), np.nan))) for p in places]
      for s in schemes
    ]
  )
  return PositionTable(schemes, places, table(cells), table(POSITIONS), label)


def plot_positions(table: PositionTable, path: str | os.PathLike) -> epath.Path:
  """Draws a table of position embeddings, with the paper's numbers below."""
  figure = new_figure(6.4, 4.2)
  axis = figure.subplots()
  shown = axis.imshow(table.measured, cmap='viridis', aspect='auto')
  middle = (np.nanmin(table.measured) + np.nanmax(table.measured)) / 2
  for (row, column), value in np.ndenumerate(table.measured):
    paper = table.published[row, column]
    here = '' if np.isnan(value) else f'{value:.2f}'
    there = '' if np.isnan(paper) else f'paper {paper:.2f}'
    axis.text(
      column,
      row,
      f'{here}\n{there}',
      ha='center',
      va='center',
      fontsize=9,
      color='white' if value < middle else 'black',
    )
  axis.set_xticks(range(len(table.places)), table.places)
  axis.set_yticks(range(len(table.schemes)), table.schemes)
  axis.set_xlabel('where positions are added (model.posemb_at)')
  axis.set_ylabel('model.posemb')
  axis.set_title(
    f'{table.metric}; paper: 5-shot ImageNet, B/16 on JFT', fontsize=10
  )
  figure.colorbar(shown, ax=axis, label=table.metric)
  return save_figure(figure, path)
