"""Runs at the same time: cores, order, failures."""

import json
import os
import time

import pytest

from vit_jax import train
from vit_jax.ablation.plan import make_plan
from vit_jax.ablation.processes import DIVERGED
from vit_jax.ablation.runner import run_variants
from vit_jax.recipe.keys import to_json


class Process:
  """A substitute for the process of a run, which calls `Trainer`."""

  def __init__(self, recipe, workdir, number, code=0):
    run = make_plan(recipe, workdir, 2, {})[number]
    self.name, self.config = run.variant, run.config
    self.directory = run.directory
    self.code, self.terminated = code, False

  def wait(self):
    if self.name == 'read':  # the result that it reads exists
      assert (self.directory.parent.parent / 'base/seed0/summary.json').exists()
    time.sleep(0.2 if self.name == 'base' else 0.0)
    if not self.code:
      (self.directory / 'config.json').write_text(
        json.dumps(to_json(self.config))
      )
      (self.directory / 'summary.json').write_text(
        json.dumps({'results': {'test': {'top1': self.config.run.seed / 4}}})
      )
    return self.code

  def terminate(self):
    self.terminated = True


def test_side_by_side(recipe, tmp_path):
  started = []

  def start(number, cores, log):
    log.write(f'step 1\nerror: run {number} diverged\n')
    started.append((number, cores))
    return Process(recipe, tmp_path, number, DIVERGED if number == 1 else 0)

  results = run_variants(recipe, tmp_path, seeds=2, jobs=2, start=start)
  assert sorted(n for n, _ in started) == [0, 1, 2, 3]
  shares = {tuple(cores or ()) for _, cores in started}
  if hasattr(os, 'sched_getaffinity'):
    assert set().union(*shares) <= os.sched_getaffinity(0)
    assert len(shares) == 1 or set.isdisjoint(*map(set, shares))
  assert [r['seed'] for r in results['large lr']['runs']] == [0, 1]
  assert results['large lr']['runs'][0]['error'] == 'error: run 1 diverged'
  assert results['large lr']['mean']['test top-1'] == 0.25
  assert '1 (1 diverged)' in (tmp_path / 'ablation.md').read_text()
  # Only failed runs are repeated.
  started.clear()
  run_variants(
    recipe,
    tmp_path,
    seeds=2,
    jobs=2,
    start=lambda n, *_: started.append((n, _)) or Process(recipe, tmp_path, n),
  )
  assert [n for n, _ in started] == [1]


@pytest.mark.parametrize(
  'code,error', [(1, RuntimeError), (3, train.Preempted)]
)
def test_side_by_side_stops_at_an_error(recipe, tmp_path, code, error):
  processes = []

  def start(number, cores, log):
    log.write('error: the disk is full\n')
    processes.append(Process(recipe, tmp_path, number, code))
    return processes[-1]

  with pytest.raises(error, match='the disk is full'):
    run_variants(recipe, tmp_path, seeds=1, jobs=2, start=start)
  assert all(p.terminated for p in processes)
