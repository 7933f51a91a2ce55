"""Reading runs from their workdirs, and the table of them."""

import csv
import json

import pytest

from tests.helpers import tiny_config
from vit_jax.cli.parser import main
from vit_jax.recipe.keys import to_json
from vit_jax.recipe.stored import changed_keys
from vit_jax.report import charts, page, runs, table


def write_run(folder, lines=(), summary=None, **sections):
  """A workdir with a recipe, metrics and maybe a summary."""
  folder.mkdir(parents=True)
  recipe = to_json(tiny_config(**sections))
  (folder / 'config.json').write_text(json.dumps(recipe))
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  if summary:
    (folder / 'summary.json').write_text(json.dumps(summary))


def line(step, **values):
  return {'step': step, 'epoch': step / 10, 'seconds': float(step), **values}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  write_run(
    root / 'a' / 'seed0',
    [
      line(10, loss=2.0, lr=0.1, time_input=1.0),
      line(20, loss='nan', lr=0.05, time_input=6.0),
      line(20, test_loss=1.5, test_top1=0.5, test_top5=1.0, test_examples=9.0),
    ],
    optim={'lr': 0.1},
  )
  write_run(
    root / 'b' / 'seed0',
    [line(1234, loss=1.25, img_per_sec=1500.0)],
    {
      'step': 1234,
      'parameters': 1000,
      'results': {'test': {'top1': 0.75, 'top5': 1.0, 'loss': 0.5}},
    },
    optim={'lr': 0.2},
  )
  return root


def test_read_runs(folder):
  first, second = runs.read_runs([folder])
  assert [first.name, second.name] == ['a/seed0', 'b/seed0']
  assert first.results()['test'] == {
    'loss': 1.5,
    'top1': 0.5,
    'top5': 1.0,
    'examples': 9.0,
  }
  assert not first.summary and second.step == 1234
  assert runs.differences([first, second]) == {'optim.lr': [0.1, 0.2]}
  assert changed_keys(second.recipe)['optim.lr'] == 0.2
  assert 'optim.b1' not in changed_keys(second.recipe)
  assert to_json(first.config()) == to_json(tiny_config(optim={'lr': 0.1}))


def test_a_summary_of_fewer_steps_is_old(tmp_path):
  write_run(tmp_path / 'run', [line(20)], {'step': 10, 'results': {}})
  (run,) = runs.read_runs([tmp_path / 'run'])
  assert not run.summary


def test_what_is_no_run(tmp_path):
  with pytest.raises(ValueError, match='is no workdir'):
    runs.read_runs([tmp_path])
  (tmp_path / 'config.json').write_text('[1]')
  with pytest.raises(ValueError, match='is not the recipe of a run'):
    runs.read_runs([tmp_path])


def test_compare(folder, tmp_path, capsys):
  markdown, numbers = tmp_path / 'runs.md', tmp_path / 'runs.csv'
  assert main(['compare', str(folder), '-o', str(markdown)]) == 0
  printed = capsys.readouterr().out
  assert '50.00' in printed and '75.00' in printed
  assert main(['compare', str(folder), '-o', str(numbers)]) == 0
  header, _, *rows = markdown.read_text().splitlines()
  assert header.startswith('| run | model | optim.lr | steps |')
  assert [row.split(' | ')[2] for row in rows] == ['0.1', '0.2']
  read = list(csv.DictReader(numbers.open()))
  assert [row['test top-1 %'] for row in read] == ['50.00', '75.00']
  assert read[1]['images/s'] == '1500' and read[0]['parameters'] == ''
  capsys.readouterr()
  assert main(['compare', str(folder), '-o', 'runs.txt']) == 1
  assert '.md or .csv' in capsys.readouterr().err


def test_curves(folder):
  read = runs.read_runs([folder])
  curves = {x['title']: x['spec'] for x in charts.curves(read)}
  values = lambda title: curves[title]['data']['values']
  # A loss that is not finite is no point of a curve.
  assert [x['value'] for x in values('Loss of training')] == [2.0, 1.25]
  assert [x['value'] for x in values('Accuracy on test')] == [0.5]
  # 5 of 10 seconds were spent on waiting.
  assert [x['value'] for x in values('Input wait')] == [50.0]
  assert 'Gradient norm' not in curves


def test_a_long_curve_has_means(tmp_path):
  write_run(tmp_path / 'run', [line(i, loss=i % 2) for i in range(1, 1601)])
  (curve, *_) = charts.curves(runs.read_runs([tmp_path]))
  values = curve['spec']['data']['values']
  assert len(values) == 400 and {x['value'] for x in values} == {0.5}
  assert values[-1]['step'] == 1600


def test_a_table_cell_is_no_markup():
  columns = {'a|b': ['x|y'], 'n': ['1,000']}
  assert table.to_markdown(columns).splitlines()[2] == r'| x\|y | 1,000 |'


def test_a_page_without_a_model(folder):
  html = page.Page(runs.read_runs([folder]), {}).render('/* library */')
  assert 'What differs' in html and '<td>optim.lr</td>' in html
  assert 'Not finished: a/seed0.' in html
  assert 'id="attention"' not in html
  assert 'location.reload' not in html  # it is not served
