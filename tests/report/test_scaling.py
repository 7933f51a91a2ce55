"""Figures of many runs."""

import json

import numpy as np
import pytest

from tests.report.test_runs import line, write_run
from vit_jax.cli.parser import main
from vit_jax.report import runs, scaling


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two sizes of a model on two amounts of data, for 2 epochs each."""
  root = tmp_path_factory.mktemp('scaling')
  for width in (16, 32):
    for images in (160, 320):
      steps = 2 * images // 16
      write_run(
        root / f'w{width}n{images}',
        [line(steps)],
        {
          'step': steps,
          'epochs': 2.0,
          'gmacs': width / 1000,
          'parameters': 10 * width,
          'img_per_sec': 5.0,
          'results': {'test': {'top1': images / 1000 + width / 100}},
        },
        model={'width': width, 'num_heads': width // 8},
      )
      measured = {'10-shot': images / 10 + width}
      (root / f'w{width}n{images}' / 'measured.json').write_text(
        json.dumps(measured)
      )
  return root


def test_points(folder):
  points = scaling.points(runs.read_runs([folder]))
  assert [p.model for p in points] == [
    f'vit_ti16, width {w}' for w in (16, 16, 32, 32)
  ]
  first = points[0]
  assert first.value == pytest.approx(32)
  assert first.metric == 'top-1 accuracy (%)'
  assert first.values == {
    'data': 160.0,
    # 320 images of 6 operations for each of 0.016 GMACs.
    'compute': pytest.approx(6 * 0.016 * 320),
    'parameters': 160.0,
    'throughput': 5.0,
  }


@pytest.mark.parametrize(
  'name, start',
  [('a.png', b'\x89PNG'), ('a.svg', b'<?xml'), ('a.pdf', b'%PDF')],
)
def test_figures(folder, tmp_path, capsys, name, start):
  path = tmp_path / name
  command = ['figures', str(folder), '-o', str(path), '--json']
  assert main([*command, '--quantity', 'compute']) == 0
  assert path.read_bytes().startswith(start)
  assert len(json.loads(capsys.readouterr().out)) == 4


def test_what_cannot_be_drawn(folder, tmp_path, capsys):
  assert main(['figures', str(folder), '-o', 'a.gif']) == 1
  assert '.png, .jpg, .svg or .pdf' in capsys.readouterr().err
  write_run(tmp_path / 'run', [line(3)])
  assert main(['figures', str(tmp_path), '-o', str(tmp_path / 'a.png')]) == 1
  assert 'has not finished' in capsys.readouterr().err
  read = runs.read_runs([folder])
  with pytest.raises(ValueError, match="no eval set 'other'; it has test"):
    scaling.points(read, 'other')
  with pytest.raises(ValueError, match="no metric '5-shot'; .* 10-shot"):
    scaling.points(read, metric='5-shot')
  with pytest.raises(ValueError, match="quantity='model.name' is no number"):
    scaling.points(read, quantity='model.name')


def test_few_shot_and_keys(folder, tmp_path, capsys):
  """What an ablation measured against the compute, and against the width."""
  path = tmp_path / 'few.png'
  command = ['figures', str(folder), '-o', str(path), '--json']
  command += ['--metric', '10-shot']
  assert main([*command, '--quantity', 'compute']) == 0
  points = json.loads(capsys.readouterr().out)
  assert [p['value'] for p in points] == [32, 48, 48, 64]
  assert path.exists()
  assert main([*command, '--quantity', 'model.width']) == 0
  points = json.loads(capsys.readouterr().out)
  assert [p['values']['model.width'] for p in points] == [16, 16, 32, 32]
  assert {p['model'] for p in points} == {'vit_ti16'}


def test_curves(folder, tmp_path, capsys):
  write_run(
    tmp_path / 'run',
    [line(n, loss=1 / n, test_top1=n / 10) for n in (1, 2, 4)],
  )
  command = ['figures', str(tmp_path / 'run'), '--curves', '-o']
  assert main([*command, str(tmp_path / 'c.png'), '--json']) == 0
  curves = {x['title']: x for x in json.loads(capsys.readouterr().out)}
  rows = curves['Loss of training']['rows']
  assert [(x['step'], x['value']) for x in rows] == [
    (1, 1),
    (2, 0.5),
    (4, 0.25),
  ]
  assert (tmp_path / 'c.png').read_bytes().startswith(b'\x89PNG')
  assert main([*command, str(tmp_path / 'c.png'), '--horizontal', 'epoch']) == 0


def test_position_table(tmp_path, capsys):
  """Two seeds of one cell are averaged; cells without runs are empty."""
  for seed, (scheme, where, value) in enumerate(
    (('learn1d', 'stem', 50.0), ('learn1d', 'stem', 52.0), ('none', 'stem', 40))
  ):
    folder = tmp_path / f'run{seed}'
    write_run(
      folder,
      [line(2)],
      {'step': 2, 'epochs': 1.0, 'results': {}},
      model={'posemb': scheme, 'posemb_at': where},
    )
    (folder / 'measured.json').write_text(json.dumps({'5-shot': value}))
  table = scaling.position_table(runs.read_runs([tmp_path]), '5-shot')
  cells = dict(zip(table.schemes, table.measured, strict=True))
  assert cells['learn1d'][0] == 51 and cells['none'][0] == 40
  assert np.isnan(table.measured).sum() == 10
  assert table.published[table.schemes.index('learn1d'), 0] == 64.206
  path = tmp_path / 'd3.svg'
  command = ['figures', str(tmp_path), '--positions', '--metric', '5-shot']
  assert main([*command, '-o', str(path), '--json']) == 0
  assert len(json.loads(capsys.readouterr().out)['cells']) == 2
  assert path.read_bytes().startswith(b'<?xml')
