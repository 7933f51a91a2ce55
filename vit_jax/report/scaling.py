"""Figures of many runs: accuracy against data, compute and throughput.

As in the figures of ViT (arXiv:2010.11929, figures 3 to 5) and DeiT
(arXiv:2012.12877, figure 1).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from etils import epath

from vit_jax.analysis.plots import new_figure, save_figure
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
    values: {key of QUANTITIES: value}; what a run does not say is missing.
    accuracy: top-1 as a fraction.
  """

  run: str
  model: str
  values: Mapping[str, float]
  accuracy: float


def points(runs: Sequence[Run], eval_set: str = '') -> list[Point]:
  """What the summaries of finished runs say.

  Args:
    runs: finished runs.
    eval_set: name of the set of the accuracy; '' is the first of each run.

  Raises:
    ValueError: a run has not finished, or has no such set.
  """
  fields = [_model(run, runs) for run in runs]
  result = []
  for run, model in zip(runs, fields, strict=True):
    if not run.summary:
      raise ValueError(
        f'{run.workdir} has no summary.json of its last step: its run has not '
        'finished. Leave it out'
      )
    results = run.results()
    name = eval_set or next(iter(results), '')
    if name not in results:
      raise ValueError(
        f'{run.workdir} has no eval set {name!r}; it has '
        f'{", ".join(results) or "none"}'
      )
    values = _values(run)
    result.append(Point(run.name, model, values, results[name]['top1']))
  return result


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


def _model(run: Run, runs: Sequence[Run]) -> str:
  """The name of a run's model, with the fields in which the runs differ."""
  words = [str(run.recipe['model.name'])]
  keys = dict.fromkeys(
    key for other in runs for key in other.recipe if key.startswith('model.')
  )
  for key in keys:
    if key == 'model.name':
      continue
    values = {str(other.recipe.get(key)) for other in runs}
    if len(values) > 1 and key in run.recipe:
      words.append(f'{key.removeprefix("model.")} {run.recipe[key]}')
  return ', '.join(words)


def plot_scaling(
  data: Sequence[Point], path: str | os.PathLike, *, quantity: str = 'data'
) -> epath.Path:
  """Draws accuracy against a quantity, with a line for each model.

  Args:
    data: of `points`.
    path: .png, .svg or .pdf file to write.
    quantity: key of QUANTITIES.

  Raises:
    ValueError: the quantity is unknown, or a run does not say it.
  """
  if quantity not in QUANTITIES:
    raise ValueError(f'quantity={quantity!r}; allowed: {", ".join(QUANTITIES)}')
  for point in data:
    if quantity not in point.values:
      raise ValueError(f'{point.run}: its summary does not tell {quantity}')
  figure = new_figure(6.4, 4.2)
  axis = figure.subplots()
  models = dict.fromkeys(point.model for point in data)
  for i, model in enumerate(models):
    line = sorted(
      (p.values[quantity], 100 * p.accuracy) for p in data if p.model == model
    )
    axis.plot(*zip(*line, strict=True), marker='os^Dv'[i % 5], label=model)
  axis.set_xscale('log')
  axis.set_xlabel(QUANTITIES[quantity])
  axis.set_ylabel('top-1 accuracy (%)')
  axis.grid(alpha=0.25, which='both')
  axis.legend(fontsize=8, frameon=False)
  return save_figure(figure, path)
