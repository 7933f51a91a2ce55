"""The results of an ablation, in memory and in the files of its directory."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from vit_jax.ablation.plan import PlannedRun
from vit_jax.ablation.table import METRICS, table
from vit_jax.files import write_atomically

# Keys of a run's summary that are kept for each run.
_KEPT = (
  'results',
  'measured',
  'error',
  'seconds',
  'parameters',
  'gmacs',
  'img_per_sec',
)
# Keys of a run's summary whose mean is kept for each variant.
_COSTS = ('parameters', 'gmacs', 'img_per_sec')


class Results:
  """The results of each variant, with their means over the seeds.

  Attributes:
    variants: {name: {'overrides', 'runs', 'mean', 'std', ...}}. 'runs' is a
      list of {'seed', 'workdir', 'results' or 'error', ...}. 'mean' and 'std'
      are the mean and the sample standard deviation over the runs, {column:
      value} with columns such as 'test top-1'; accuracies are fractions.
  """

  def __init__(
    self, workdir: epath.Path, variants: Mapping[str, Mapping[str, Any]]
  ):
    self._workdir = workdir
    self.variants: dict[str, dict[str, Any]] = {
      name: {'overrides': dict(values), 'runs': []}
      for name, values in variants.items()
    }

  def add(self, run: PlannedRun, summary: Mapping[str, Any]) -> None:
    """Adds a run with its summary, or with its {'error': message}."""
    variant = self.variants[run.variant]
    kept = {key: summary[key] for key in _KEPT if summary.get(key)}
    variant['runs'].append(
      {'seed': run.seed, 'workdir': str(run.directory), **kept}
    )
    variant['runs'].sort(key=lambda r: r['seed'])
    _add_means(variant)

  def write(self) -> None:
    """Writes ablation.json and ablation.md; only process 0 does."""
    if jax.process_index() != 0:
      return
    self._workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(
      self._workdir / 'ablation.json',
      json.dumps(self.variants, indent=2) + '\n',
    )
    write_atomically(self._workdir / 'ablation.md', table(self.variants) + '\n')


def _add_means(variant: dict[str, Any]) -> None:
  """Sets the means and standard deviations of a variant, and its mean costs."""
  scores: dict[str, list[float]] = {}
  for run in variant['runs']:
    for name, values in run.get('results', {}).items():
      for title, metric in METRICS.items():
        if metric.key in values:
          scores.setdefault(f'{name} {title}', []).append(values[metric.key])
    for column, value in run.get('measured', {}).items():
      scores.setdefault(column, []).append(value)
  variant['mean'] = {k: float(np.mean(v)) for k, v in scores.items()}
  variant['std'] = {
    k: float(np.std(v, ddof=1)) for k, v in scores.items() if len(v) > 1
  }
  for key in _COSTS:
    values = [run[key] for run in variant['runs'] if key in run]
    if values:
      variant[key] = float(np.mean(values))
