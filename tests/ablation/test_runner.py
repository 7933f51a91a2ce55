"""The ablation driver: variants, seeds, resume, mistakes."""

import json

import jax
import pytest

from tests.ablation.conftest import RECIPE, Trainer
from tests.helpers import run_python
from vit_jax import train
from vit_jax.ablation.runner import run_variants
from vit_jax.ablation.table import table
from vit_jax.recipe.keys import ConfigError


def test_variants_and_table(recipe, tmp_path):
  trainer = Trainer()
  results = run_variants(
    recipe,
    tmp_path / 'w',
    seeds=2,
    run_one=trainer,
    overrides={'optim.weight_decay': 0.1},
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
  assert results['large lr']['mean']['test top-1'] == pytest.approx(0.75)
  assert results['large lr']['std']['test top-1'] == pytest.approx(0.1 / 2**0.5)
  assert results['base']['std'] == {}
  assert (
    table(results)
    == """\
| variant  |   test top-1 | runs |
|----------|-------------:|-----:|
| base     |        50.00 |    1 |
| large lr | 75.00 ± 7.07 |    2 |
| read     |        50.00 |    1 |"""
  )
  assert json.loads((tmp_path / 'w/ablation.json').read_text()) == results
  assert (tmp_path / 'w/ablation.md').read_text() == table(results) + '\n'


def test_resume_runs_what_is_missing(recipe, tmp_path):
  whole = run_variants(recipe, tmp_path / 'whole', seeds=2, run_one=Trainer())
  first, second, third = Trainer(fail_at=3), Trainer(), Trainer()
  workdir = tmp_path / 'w'
  with pytest.raises(KeyboardInterrupt):
    run_variants(recipe, workdir, seeds=2, run_one=first)
  partial = (workdir / 'ablation.md').read_text()
  assert 'large lr |      70.00 |    1 |' in partial
  results = run_variants(recipe, workdir, seeds=2, run_one=second)
  assert [name for name, _ in second.runs] == ['large_lr', 'read']
  assert table(results) == table(whole)
  run_variants(recipe, workdir, seeds=2, run_one=third)
  assert not third.runs
  # One more seed of each variant without the key seeds.
  run_variants(recipe, workdir, seeds=3, run_one=third)
  assert [c.run.seed for _, c in third.runs] == [2]


def test_a_diverged_run_does_not_stop_the_others(recipe, tmp_path):
  trainer = Trainer(fail_at=2, error=train.NonFinite)
  results = run_variants(recipe, tmp_path / 'w', seeds=2, run_one=trainer)
  assert len(trainer.runs) == 4
  assert '1 (1 diverged)' in table(results)
  assert results['large lr']['runs'][0]['error'] == 'stopped'


def test_only_some_variants(recipe, tmp_path):
  trainer = Trainer()
  results = run_variants(
    recipe, tmp_path / 'w', seeds=2, only=['large lr'], run_one=trainer
  )
  assert len(trainer.runs) == 2 and not results['base']['runs']
  with pytest.raises(
    ConfigError, match="no variant 'larger'; the variants are base"
  ):
    run_variants(recipe, tmp_path / 'w', only=['larger'], run_one=trainer)


@pytest.mark.parametrize(
  'text,message',
  [
    ('def get_config(arg=None): pass', 'has no variants'),
    (
      RECIPE.replace('optim.lr', 'optim.rate'),
      'optim.rate=0.5: there is no such',
    ),
    (RECIPE.replace("'base'", "'large_lr'"), 'variants with different names'),
    (RECIPE.replace("'arg': 'large'", "'config': 'no.py:a'"), 'no such recipe'),
  ],
  ids=['sweep', 'key', 'names', 'recipe'],
)
def test_mistakes_are_seen_before_the_first_run(tmp_path, text, message):
  (tmp_path / 'recipe.py').write_text(text)
  trainer = Trainer()
  with pytest.raises(ConfigError, match=message):
    run_variants(str(tmp_path / 'recipe.py'), tmp_path / 'w', run_one=trainer)
  assert not trainer.runs


def test_the_data_of_every_variant_is_opened_before_the_first_run(
  tmp_path, capsys
):
  (tmp_path / 'recipe.py').write_text(
    RECIPE.replace(
      "'optim.lr': 0.5", "'data.source': 'folder', 'data.dir': '/nowhere'"
    )
  )
  with pytest.raises(ConfigError, match=r"variant 'large lr': .*/nowhere"):
    run_variants(str(tmp_path / 'recipe.py'), tmp_path / 'w', seeds=1)
  out = capsys.readouterr().out
  assert 'checking variant 2 of 2: large lr' in out
  assert not (tmp_path / 'w' / 'base').exists()


MEASURE = """

def measure(config, directory):
  assert (directory / 'summary.json').exists()
  return {'5-shot': 50 + 100 * config.optim.lr}
"""


def test_measures_of_a_recipe_are_columns(tmp_path):
  path = tmp_path / 'recipe.py'
  text = RECIPE.replace("{'seeds': 1}", "{'published': {'5-shot': 61.4}}", 1)
  path.write_text(text + MEASURE)
  trainer = Trainer()
  results = run_variants(str(path), tmp_path / 'w', seeds=2, run_one=trainer)
  assert results['large lr']['mean']['5-shot'] == 100.0
  assert table(results).splitlines()[::2] == [
    '| variant  |   test top-1 |          5-shot | published 5-shot | runs |',
    '| base     | 55.00 ± 7.07 |  51.000 ± 0.000 |             61.4 |    2 |',
    '| read     |        50.00 |          51.000 |                  |    1 |',
  ]
  # A run that ended without its measures gets them now.
  (tmp_path / 'w/base/seed0/measured.json').unlink()
  continued = []

  def finish(config, workdir):
    continued.append(workdir.parent.name)
    return json.loads((workdir / 'summary.json').read_text())

  again = run_variants(str(path), tmp_path / 'w', seeds=2, run_one=finish)
  assert again == results and continued == ['base']


def test_with_the_real_loop(tmp_path):
  """A variant that uses the result of another, and a second start."""
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE.replace("      'large lr'", "      # 'large lr'"))
  one = lambda config, workdir: train.train_and_evaluate(
    config, workdir, jax.devices()[:1]
  )
  results = run_variants(str(path), tmp_path / 'w', seeds=1, run_one=one)
  assert results['read']['mean'] == results['base']['mean']
  again = run_variants(str(path), tmp_path / 'w', seeds=1, run_one=Trainer())
  assert table(again) == table(results)
  path.write_text(path.read_text().replace('steps=2', 'steps=3'))
  with pytest.raises(ConfigError, match='belongs to another recipe'):
    run_variants(str(path), tmp_path / 'w', seeds=1, run_one=one)


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
