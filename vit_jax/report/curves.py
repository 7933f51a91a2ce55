"""Learning curves of runs as a picture."""

from collections.abc import Sequence
import math
import os

from etils import epath

from vit_jax.analysis.plots import new_figure, save_figure
from vit_jax.report import charts
from vit_jax.report.runs import Run

HORIZONTAL = ('step', 'epoch', 'hours')


def plot_curves(
  runs: Sequence[Run], path: str | os.PathLike, *, horizontal: str = 'step'
) -> epath.Path:
  """Draws the curves of a report: loss, accuracy, rate, speed and so on.

  `charts.curves` returns their values.

  Args:
    runs: the runs, which need not have finished.
    path: .png, .jpg, .svg or .pdf file to write.
    horizontal: one of HORIZONTAL.

  Raises:
    ValueError: no run has written metrics, or `horizontal` is unknown.
  """
  if horizontal not in HORIZONTAL:
    raise ValueError(
      f'horizontal={horizontal!r}; allowed: {", ".join(HORIZONTAL)}'
    )
  curves = charts.curves(runs)
  if not curves:
    raise ValueError(
      f'{", ".join(run.workdir for run in runs)}: no metrics have been written '
      'yet'
    )
  columns = min(3, len(curves))
  rows = math.ceil(len(curves) / columns)
  figure = new_figure(3.6 * columns, 2.7 * rows + 0.5)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat[len(curves) :]:
    axis.set_axis_off()
  colors = {run.name: f'C{i % 10}' for i, run in enumerate(runs)}
  for axis, curve in zip(axes.flat, curves, strict=False):
    unit = curve['unit']
    scale = 100 if unit == 'top-1' else 1
    for name, color in colors.items():
      line = [x for x in curve['rows'] if x['run'] == name]
      axis.plot(
        [x[horizontal] for x in line],
        [scale * x['value'] for x in line],
        marker='.' if len(line) < 40 else None,
        lw=1.2,
        color=color,
        label=name,
      )
    axis.set_title(curve['title'], fontsize=9)
    axis.set_ylabel('top-1 (%)' if unit == 'top-1' else unit, fontsize=8)
    axis.set_xlabel(horizontal, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
  names = ', '.join(colors)
  figure.suptitle(names if len(runs) == 1 else f'{len(runs)} runs', fontsize=10)
  if len(runs) > 1:
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
      handles,
      labels,
      loc='outside lower center',
      ncols=min(4, len(labels)),
      fontsize=8,
      frameon=False,
    )
  return save_figure(figure, path)
