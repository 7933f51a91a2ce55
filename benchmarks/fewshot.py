"""Measures the closed-form linear probe beside scikit-learn's Ridge.

  python -m benchmarks.fewshot --quick
  python -m benchmarks.fewshot

A run fits the features of a support set and scores a test set of 5,000.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import machine, turns
from vit_jax.evaluation.fewshot import L2, ridge_scores

_TEST = 5000
# (classes, images of each class, width of the features)
_SHAPES = ((100, 10, 384), (100, 25, 1024), (1000, 10, 768))


def _numbers(settings: dict[str, Any]):
  classes, shots, width = settings['shape']
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(classes), shots)
  features = rng.standard_normal((len(labels), width), np.float32)
  return features, labels, rng.standard_normal((_TEST, width), np.float32)


def ours(settings: dict[str, Any]) -> Callable[[], object]:
  """`vit_jax.evaluation.fewshot.ridge_scores`."""
  features, labels, test = _numbers(settings)
  return lambda: ridge_scores(features, labels, test, settings['shape'][0])


def sklearns(settings: dict[str, Any]) -> Callable[[], object]:
  """The same probe with StandardScaler and Ridge."""
  from sklearn.linear_model import Ridge
  from sklearn.preprocessing import StandardScaler

  features, labels, test = _numbers(settings)
  targets = np.where(np.eye(settings['shape'][0])[labels] > 0, 1.0, -1.0)

  def once():
    scaler = StandardScaler().fit(features)
    probe = Ridge(alpha=L2).fit(scaler.transform(features), targets)
    return probe.predict(scaler.transform(test))

  return once


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--quick', action='store_true', help='one small shape')
  parser.add_argument('--json', metavar='FILE', help='writes all runs')
  args = parser.parse_args()
  print(machine.describe())
  groups = {}
  for shape in _SHAPES[:1] if args.quick else _SHAPES:
    rows = [
      turns.Candidate(
        name, f'benchmarks.fewshot:{function}', {'shape': shape}, _TEST
      )
      for name, function in (('vit_jax', 'ours'), ('scikit-learn', 'sklearns'))
    ]
    title = f'{shape[0]} classes, {shape[1]} shots, width {shape[2]}'
    groups[title] = turns.measure(rows, args.rounds)
    print(f'\n{title}\n\n{turns.table(groups[title], "scikit-learn", "img")}')
  if args.json:
    turns.write_json(args.json, groups)


if __name__ == '__main__':
  main()
