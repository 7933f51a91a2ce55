"""Builds the page of some runs."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from vit_jax.analysis.areas import collect_areas
from vit_jax.inference.classifier import Classifier
from vit_jax.report import charts
from vit_jax.report.examined import (
  Examined,
  attention_pictures,
  choose,
  describe,
  examine,
)
from vit_jax.report.explorer import explorer
from vit_jax.report.page import Page
from vit_jax.report.runs import Run, find_workdirs, read_runs
from vit_jax.weights.steps import FOLDER, absolute, list_steps

MOST_MODELS = 4  # runs whose images are examined; the others have curves
_MAPS = 2_600_000  # bytes of the attention maps of all runs


class Report:
  """The page of some runs, which can be built again while they go on.

  Args:
    workdirs: of the runs, or folders of them.
    images: number of images whose attention is shown, for all runs together.
    model: whether test images are examined. Without them the page has the
      recipe, the curves and the results.
    say: prints a line.
    **options: of `examined.examine`.
  """

  def __init__(
    self,
    workdirs: Sequence[str | os.PathLike],
    *,
    images: int = 6,
    model: bool = True,
    say: Callable[[str], None] = print,
    **options: Any,
  ):
    self._workdirs, self._images, self._model = workdirs, images, model
    self._say, self._options = say, options
    # {workdir: its newest step, and what its model says about the images}
    self._examined: dict[str, tuple[str, dict[str, Any]]] = {}

  def html(self, version: str = '') -> str:
    """The page; only models that have made new steps are examined again.

    Args:
      version: see `Page.render`.

    Raises:
      ValueError: there is no run.
      ImportError: the charts are not installed.
    """
    library = charts.library()
    runs = read_runs(self._workdirs)
    chosen = runs[:MOST_MODELS] if self._model else []
    if chosen and len(runs) > len(chosen):
      self._say(f'test images of the first {len(chosen)} of {len(runs)} runs')
    examined = {}
    for run in chosen:
      step = _newest_step(run.workdir)
      if self._examined.get(run.workdir, ('',))[0] != step or not step:
        count = max(1, self._images // len(chosen))
        self._examined[run.workdir] = (
          step,
          examine_run(
            run, count, _MAPS // len(chosen), self._say, self._options
          ),
        )
      examined[run.name] = self._examined[run.workdir][1]
    return Page(runs, examined).render(library, version)

  def version(self) -> str:
    """A text that changes when the runs have written something."""
    state = []
    for folder in self._workdirs:
      for workdir in find_workdirs(folder):
        for name in ('metrics.jsonl', 'summary.json'):
          path = workdir / name
          state.append(str(path.stat().length) if path.exists() else '-')
        state.append(_newest_step(workdir).rpartition('/')[2] or '-')
    return ' '.join(state)


def _newest_step(workdir: str | os.PathLike) -> str:
  """The path of the newest step; '' if there is none yet."""
  steps = list_steps(absolute(workdir) / FOLDER)
  return str(steps[-1]) if steps else ''


def examine_run(
  run: Run,
  images: int,
  budget: int,
  say: Callable[[str], None],
  options: Mapping[str, Any],
) -> dict[str, Any]:
  """What the page says about a run's images; 'missing' if they cannot be read.

  Args:
    run: the run.
    images: number of images whose attention is shown.
    budget: bytes of their attention maps.
    say: prints a line.
    options: of `examined.examine`.
  """
  try:
    examined = examine(run, **options)
  except (ValueError, OSError) as e:
    say(f'{run.name}: its test images are not shown: {e}')
    return {'missing': f'The test images were not examined: {e}'}
  return {
    **describe(examined),
    'attention': _attention(examined, images, budget),
  }


def _attention(examined: Examined, images: int, budget: int) -> dict[str, Any]:
  """The attention of some images; 'missing' for a model that has none."""
  rows = choose(examined, images)
  classifier = examined.classifier
  if not isinstance(classifier, Classifier):
    return {'missing': 'An exported program has no attention maps.'}
  try:
    pictures, attention, pixels = attention_pictures(examined, rows)
  except ValueError as e:  # such as a Mixer
    return {'missing': str(e)}
  areas = collect_areas(
    classifier.model,
    classifier.variables,
    classifier.normalize(pixels),
    attention.grid,
  )
  gap = ' (GAP)' if getattr(classifier.model, 'pool', '') == 'gap' else ''
  return {
    'pictures': pictures,
    'explorer': explorer(
      attention, areas, pooled=f'mean of all patches{gap}', budget=budget
    ),
  }
