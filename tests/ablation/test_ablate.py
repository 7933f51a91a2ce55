"""The ablation driver: variants, seeds, resume, the table."""

import json
import os
import time

import jax
import pytest

from configs import deit_cifar10, deit_i1k
from tests.helpers import ROOT, run_python
from vit_jax import train
from vit_jax.ablation import plan, runner, table
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import ConfigError, to_json

RECIPE = """
from tests.helpers import tiny_config

def get_config(arg=None):
  return tiny_config(run=dict(steps=2, name=arg or ''))

def sweep(arg=None):
  return {
      'base': {'seeds': 1},
      'large lr': {'optim.lr': 0.5, 'arg': 'large'},
      'read': {'run.eval_only': True,
               'run.pretrained': '{workdir}/base/seed0', 'seeds': 1},
  }
"""


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE)
  return str(path)


class Trainer:
  """Stands for the loop: writes a summary, and fails when told to."""

  def __init__(self, fail_at=None, error=KeyboardInterrupt):
    self.runs, self.fail_at, self.error = [], fail_at, error

  def __call__(self, config, workdir):
    self.runs.append((workdir.parent.name, config))
    if len(self.runs) == self.fail_at:
      raise self.error('stopped')
    top1 = 0.5 + 0.1 * config.run.seed + 0.2 * (config.optim.lr > 0.1)
    summary = {'results': {'test': {'top1': top1}}, 'seconds': 1.0}
    workdir.mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(to_json(config)))
    (workdir / 'summary.json').write_text(json.dumps(summary))
    return summary


def test_variants_and_table(recipe, tmp_path):
  trainer = Trainer()
  found = runner.run(
    recipe,
    tmp_path / 'w',
    seeds=2,
    run_one=trainer,
    common={'optim.weight_decay': 0.1},
  )
  assert [name for name, _ in trainer.runs] == [
    'base',
    'large_lr',
    'large_lr',
    'read',
  ]
  configs = [c for _, c in trainer.runs]
  assert [c.run.seed for c in configs] == [0, 0, 1, 0]
  assert [c.run.name for c in configs] == ['', 'large', 'large', '']
  assert [c.optim.lr for c in configs] == [1e-2, 0.5, 0.5, 1e-2]
  assert configs[3].run.pretrained == str(tmp_path / 'w/base/seed0')
  assert all(c.optim.weight_decay == 0.1 for c in configs)
  assert found['large lr']['mean']['test top-1'] == pytest.approx(0.75)
  assert found['large lr']['std']['test top-1'] == pytest.approx(0.1 / 2**0.5)
  assert found['base']['std'] == {}
  assert (
    table.table(found)
    == """\
| variant  |   test top-1 | runs |
|----------|-------------:|-----:|
| base     |        50.00 |    1 |
| large lr | 75.00 ± 7.07 |    2 |
| read     |        50.00 |    1 |"""
  )
  assert json.loads((tmp_path / 'w/ablation.json').read_text()) == found
  assert (tmp_path / 'w/ablation.md').read_text() == table.table(found) + '\n'


def test_resume_runs_what_is_missing(recipe, tmp_path):
  whole = runner.run(recipe, tmp_path / 'whole', seeds=2, run_one=Trainer())
  first, second, third = Trainer(fail_at=3), Trainer(), Trainer()
  workdir = tmp_path / 'w'
  with pytest.raises(KeyboardInterrupt):
    runner.run(recipe, workdir, seeds=2, run_one=first)
  partial = (workdir / 'ablation.md').read_text()
  assert 'large lr |      70.00 |    1 |' in partial
  found = runner.run(recipe, workdir, seeds=2, run_one=second)
  assert [name for name, _ in second.runs] == ['large_lr', 'read']
  assert table.table(found) == table.table(whole)
  runner.run(recipe, workdir, seeds=2, run_one=third)
  assert not third.runs
  # One more seed of what has seeds.
  runner.run(recipe, workdir, seeds=3, run_one=third)
  assert [c.run.seed for _, c in third.runs] == [2]


def test_a_diverged_run_does_not_stop_the_others(recipe, tmp_path):
  trainer = Trainer(fail_at=2, error=train.NonFinite)
  found = runner.run(recipe, tmp_path / 'w', seeds=2, run_one=trainer)
  assert len(trainer.runs) == 4
  assert '1 (1 diverged)' in table.table(found)
  assert found['large lr']['runs'][0]['error'] == 'stopped'


def test_only_some_variants(recipe, tmp_path):
  trainer = Trainer()
  found = runner.run(
    recipe, tmp_path / 'w', seeds=2, only=['large lr'], run_one=trainer
  )
  assert len(trainer.runs) == 2 and not found['base']['runs']
  with pytest.raises(ConfigError, match="no variant 'larger'; there are base"):
    runner.run(recipe, tmp_path / 'w', only=['larger'], run_one=trainer)


@pytest.mark.parametrize(
  'text,message',
  [
    ('def get_config(arg=None): pass', 'has no variants'),
    (RECIPE.replace('optim.lr', 'optim.rate'), 'optim.rate=0.5 does not fit'),
    (RECIPE.replace("'base'", "'large_lr'"), 'variants of different names'),
    (RECIPE.replace("'arg': 'large'", "'config': 'no.py:a'"), 'no such recipe'),
  ],
  ids=['sweep', 'key', 'names', 'recipe'],
)
def test_mistakes_are_found_before_the_first_run(tmp_path, text, message):
  (tmp_path / 'recipe.py').write_text(text)
  trainer = Trainer()
  with pytest.raises(ConfigError, match=message):
    runner.run(str(tmp_path / 'recipe.py'), tmp_path / 'w', run_one=trainer)
  assert not trainer.runs


def test_a_list_of_overrides_names_itself():
  found = plan.variants(f'{ROOT}/configs/finetune.py:b16,cifar10')
  assert next(iter(found)) == 'optim.lr=0.001' and len(found) == 4
  assert plan.folder('a b/c, d=1e-3') == 'a_b_c_d=1e-3'


@pytest.mark.parametrize('recipe', ['deit_cifar10', 'deit_i1k:ti16'])
def test_sweeps_of_recipes_fit(recipe, tmp_path):
  name, _, arg = recipe.partition(':')
  recipe = f'{ROOT}/configs/{name}.py:{arg}'
  found = plan.variants(recipe)
  for variant, overrides in found.items():
    config = plan.variant_config(recipe, overrides, tmp_path, 1, {})
    if config.loss.distill != 'none' and not config.loss.teacher_weights:
      config.loss.teacher_weights = 'random'
    check(config)
    if config.run.pretrained:  # of a variant that comes before
      made = config.run.pretrained.split('/')[-2]
      names = [plan.folder(n) for n in found]
      assert made in names[: names.index(plan.folder(variant))]
  assert deit_i1k.sweep('b16')['hard']['arg'] == 'b16,hard'
  assert deit_cifar10.sweep('smoke')['teacher']['arg'] == 'teacher,smoke'


def test_with_the_real_loop(tmp_path):
  """Train, read the result of one variant in another, start again."""
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE.replace("      'large lr'", "      # 'large lr'"))
  one = lambda config, workdir: train.train_and_evaluate(
    config, workdir, jax.devices()[:1]
  )
  found = runner.run(str(path), tmp_path / 'w', seeds=1, run_one=one)
  assert found['read']['mean'] == found['base']['mean']
  again = runner.run(str(path), tmp_path / 'w', seeds=1, run_one=Trainer())
  assert table.table(again) == table.table(found)
  path.write_text(path.read_text().replace('steps=2', 'steps=3'))
  with pytest.raises(ConfigError, match='belongs to another recipe'):
    runner.run(str(path), tmp_path / 'w', seeds=1, run_one=one)


class Process:
  """Stands for a process that does one run, `Trainer` at its side."""

  def __init__(self, recipe, workdir, number, code=0):
    self.name, self.k, self.config = plan.make_plan(recipe, workdir, 2, {})[
      number
    ]
    self.directory = workdir / plan.folder(self.name) / f'seed{self.k}'
    self.code, self.terminated = code, False

  def wait(self):
    if self.name == 'read':  # what it reads is there
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
    return Process(
      recipe, tmp_path, number, runner.DIVERGED if number == 1 else 0
    )

  found = runner.run(recipe, tmp_path, seeds=2, jobs=2, start=start)
  assert sorted(n for n, _ in started) == [0, 1, 2, 3]
  shares = {tuple(cores or ()) for _, cores in started}
  if hasattr(os, 'sched_getaffinity'):
    assert set().union(*shares) <= os.sched_getaffinity(0)
    assert len(shares) == 1 or set.isdisjoint(*map(set, shares))
  assert [r['seed'] for r in found['large lr']['runs']] == [0, 1]
  assert found['large lr']['runs'][0]['error'] == 'error: run 1 diverged'
  assert found['large lr']['mean']['test top-1'] == 0.25
  assert '1 (1 diverged)' in (tmp_path / 'ablation.md').read_text()
  # Only what failed is done again.
  started.clear()
  runner.run(
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
    runner.run(recipe, tmp_path, seeds=1, jobs=2, start=start)
  assert all(p.terminated for p in processes)


def test_costs_in_the_table():
  found = {
    'a': {
      'runs': [{'seed': 0}],
      'mean': {'test top-1': 0.5},
      'std': {},
      'parameters': 12345.0,
      'gmacs': 0.01234,
      'img_per_sec': 99.6,
    },
    'b': {'runs': [], 'mean': {}, 'std': {}},
  }
  assert table.table(found).splitlines()[::2] == [
    '| variant | test top-1 | runs | parameters | GFLOPs | img/s |',
    '| a       |      50.00 |    1 |     12,345 | 0.0123 |   100 |',
  ]


@pytest.mark.slow
def test_command_line(recipe, tmp_path):
  done = run_python(
    '-m',
    'vit_jax.ablate',
    f'--config={recipe}',
    '--seeds=1',
    '--jobs=2',
    f'--workdir={tmp_path / "w"}',
    '--config.optim.weight_decay=0.1',
  )
  assert done.returncode == 0, done.stderr
  assert 'step 2/2' in (tmp_path / 'w/base/seed0/log.txt').read_text()
  assert '| large lr |' in done.stdout
  config = json.loads((tmp_path / 'w/base/seed0/config.json').read_text())
  assert config['optim']['weight_decay'] == 0.1
  done = run_python(
    '-m',
    'vit_jax.ablate',
    f'--config={recipe}',
    f'--workdir={tmp_path / "w"}',
    '--seeds=0',
  )
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1] == (
    'error: seeds=0: must be at least 1'
  )
