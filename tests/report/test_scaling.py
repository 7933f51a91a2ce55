"""Figures of many runs."""

import json

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
        model={'width': width},
      )
  return root


def test_points(folder):
  points = scaling.points(runs.read_runs([folder]))
  assert [p.model for p in points] == [
    f'vit_ti16, width {w}' for w in (16, 16, 32, 32)
  ]
  first = points[0]
  assert first.accuracy == pytest.approx(0.32)
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
  assert '.png, .svg or .pdf' in capsys.readouterr().err
  write_run(tmp_path / 'run', [line(3)])
  assert main(['figures', str(tmp_path), '-o', str(tmp_path / 'a.png')]) == 1
  assert 'has not finished' in capsys.readouterr().err
  read = runs.read_runs([folder])
  with pytest.raises(ValueError, match="no eval set 'other'; it has test"):
    scaling.points(read, 'other')
