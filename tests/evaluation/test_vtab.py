"""VTAB-1k: the table, and the run task by task (with a trainer that is fast).

tests/data/test_vtab.py has the tasks; tests/training/test_vtab.py trains.
"""

import json

import pytest

from tests.data.helpers import write_images
from vit_jax import finetuning, train
from vit_jax.cli.parser import main
from vit_jax.data.sources.vtab import TASKS
from vit_jax.evaluation.vtab import GROUPS, PUBLISHED, mean_accuracy, table

SMALL = {
  'fields': {'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_dim': 16},
  'image_size': 32,
  'batch_size': 8,
  'steps': 2,
  'keys': {'data.split': 'train8val4'},
}


def rows(text):
  """{first cell: other cells} of a Markdown table."""
  cells = [
    [c.strip() for c in line.split('|')[1:-1]] for line in text.split('\n')
  ]
  return {name.strip('*'): rest for name, *rest in cells}


def test_published_means_are_those_of_the_paper():
  means = [mean_accuracy(values, TASKS) for values in PUBLISHED.values()]
  assert means == pytest.approx([77.6, 76.3, 72.7], abs=0.06)
  groups = [task.group for task in TASKS.values()]
  assert [groups.count(group) for group in GROUPS] == [7, 4, 8]


def test_table_by_groups():
  done = {
    'eurosat': {'top1': 0.5, 'images': 5400},
    'resisc45': {'top1': 0.25, 'images': 6300},
    'dmlab': {'error': 'NaN'},
  }
  got = rows(table(done))
  assert got['eurosat'] == ['50.00', '5,400', '96.7', '96.5', '95.6']
  assert got['caltech101'][:3] == ['', '', '95.3']
  assert got['dmlab'][0] == 'diverged'
  # Of the two tasks that are done, in all columns.
  assert got['specialized (2 of 4)'] == [
    '**37.50**', '', '**94.1**', '**93.1**', '**90.4**',
  ]  # fmt: skip
  assert got['all tasks (2 of 19)'][0] == '**37.50**'
  assert got['structured'][:3] == ['', '', '**65.0**']
  complete = {task: {'top1': 0.5, 'images': 1} for task in TASKS}
  assert rows(table(complete))['all tasks'] == [
    '**50.00**', '', '**77.6**', '**76.3**', '**72.7**',
  ]  # fmt: skip


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('folders')
  write_images(root / 'eurosat', {f'{i}': 3 for i in range(10)})
  for split in ('train', 'val', 'test'):
    write_images(root / 'pcam' / split, {'no': 4, 'yes': 4})
  return {
    'eurosat': str(root / 'eurosat'),
    'patch_camelyon': str(root / 'pcam'),
  }


def vtab(folders, output, **options):
  return finetuning.vtab(
    'vit_ti16', '', folders, output, **{**SMALL, 'tasks': [*folders], **options}
  )


def test_tasks_are_resumed_one_by_one(folders, tmp_path, monkeypatch):
  runs = []

  def train_and_evaluate(config, workdir):
    runs.append(config.data.source)
    if len(runs) == 2:
      raise train.Preempted('stopped')
    result = {'results': {'test': {'top1': 0.5, 'examples': 7.0}}}
    workdir.mkdir(parents=True)
    (workdir / 'summary.json').write_text(json.dumps(result))
    return result

  monkeypatch.setattr(train, 'train_and_evaluate', train_and_evaluate)
  with pytest.raises(train.Preempted):
    vtab(folders, tmp_path / 'x')
  assert '(1 of 19)' in (tmp_path / 'x' / 'vtab.md').read_text()
  # The images of a finished task are not needed any more.
  results = vtab({**folders, 'patch_camelyon': str(tmp_path)}, tmp_path / 'x')
  assert runs == ['vtab:patch_camelyon', 'vtab:eurosat', 'vtab:eurosat']
  assert [*results] == ['patch_camelyon', 'eurosat']
  assert results['eurosat'] == {
    'top1': 0.5, 'images': 7, 'data': folders['eurosat'],
  }  # fmt: skip
  assert '(2 of 19)' in (tmp_path / 'x' / 'vtab.md').read_text()
  # One task of them keeps the other in the table.
  results = vtab(folders, tmp_path / 'x', tasks=['eurosat'])
  assert [*results] == ['patch_camelyon', 'eurosat'] and len(runs) == 3


def test_a_task_that_diverges_does_not_stop_the_others(
  folders, tmp_path, monkeypatch
):
  def diverge(config, workdir):
    raise train.NonFinite('the loss is NaN')

  monkeypatch.setattr(train, 'train_and_evaluate', diverge)
  results = vtab(folders, tmp_path)
  assert [*results.values()] == [{'error': 'the loss is NaN'}] * 2


def test_mistakes_end_before_the_first_run(folders, tmp_path, capsys):
  eurosat, data = f'eurosat={folders["eurosat"]}', str(tmp_path)
  for words, messages in (
    (['--data', data, '--tasks', 'eurosatt'], ["mean 'eurosat'?", 'dtd']),
    (['--data', 'eurosatt=x'], ["did you mean 'eurosat'?"]),
    (['--data', 'x', 'y'], ['--data gives x and y']),
    (
      ['--tasks', 'dtd', 'svhn', '--data', data, '--data', eurosat],
      [f'tfds build dtd --data_dir={data}', 'tfds build svhn_cropped'],
    ),
    (
      [
        *('--data', data, '--data', eurosat),
        '--config.data.split=train8val4',
      ],
      ['18 of 19 tasks', 'or run the other tasks: --tasks eurosat'],
    ),
    (
      ['--data', eurosat, '--tasks', 'eurosat'],
      ["such as 'train400val100'"],
    ),
  ):
    code, error = command(capsys, *words, '-o', str(tmp_path / 'out'))
    assert code == 1
    assert all(message in error for message in messages), error
  assert not (tmp_path / 'out').exists()


def command(capsys, *words):
  """Exit code and messages of `vit-jax vtab`."""
  model = ('--model', 'vit_ti16', '--steps', '2')
  return main(['vtab', *words, *model, 'none']), capsys.readouterr().err
