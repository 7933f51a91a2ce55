"""What the benchmarks share: turns of candidates, and their tables."""

import io
import json
import re

import numpy as np
import pytest

from benchmarks import input_pipeline, models, summary, turns
from tests import turn_taker


def candidate(name, function='prepare', amount=1.0):
  prepare = f'tests.turn_taker:{function}'
  return turns.Candidate(name, prepare, {'megabytes': 7}, amount)


def test_candidates_take_turns():
  said = []
  measured = turns.measure(
    [candidate('one'), candidate('two', amount=2.0), candidate('bad', 'fail')],
    rounds=2,
    say=said.append,
  )
  one, two, bad = measured
  assert len(one.wall) == len(two.wall) == 2 and bad.wall == []
  assert max(one.wall) >= 0.1 and one.facts == {'step MB': 7, '_macs': 3}
  assert bad.error == 'ValueError: no 7 MB' and said[2] == f'bad: {bad.error}'
  rows = turns.table(measured, 'one', 'img').splitlines()
  assert rows[0].endswith('| first | step MB |') and '_macs' not in rows[0]
  assert rows[2].endswith(' 7 |') and rows[4].count('|') == rows[2].count('|')
  assert re.match(r'\| two \| [\d.]+ \|', rows[3])
  assert models.utilization('training', measured, 1.0).startswith(
    'MFU at 1 TFLOP/s: one '
  )
  assert turns.best_rate(measured) == pytest.approx(
    turns.best_rate([two]), rel=1e-9
  )


@pytest.mark.parametrize(
  ('cold', 'warm', 'runs'), [(0.03, 0.01, 133), (1, 1, 4)]
)
def test_short_runs_warm_up_in_every_turn(
  monkeypatch, capsys, cold, warm, runs
):
  # The clock only moves in runs, and the first 60 ms of a turn are cold.
  clock = turn_taker.Clock()
  monkeypatch.setattr(turn_taker, 'clock', clock)
  monkeypatch.setattr(turns.time, 'perf_counter', lambda: clock.seconds)
  monkeypatch.setattr(turns.sys, 'stdin', io.StringIO('run\nrun\n'))
  turns._serve('tests.turn_taker:cold_at_first', {'cold': cold, 'warm': warm})
  answers = map(json.loads, capsys.readouterr().out.splitlines())
  walls = [x['wall'] for x in answers if 'wall' in x]
  assert walls == pytest.approx([warm, warm])
  # Short: one to be ready, then in each turn 2 cold and 14 warm ones, and 50
  # that are measured. Long: one to be ready, one more in the first turn, and
  # one in each turn.
  assert clock.runs == runs


def test_memory_is_that_of_the_candidate_alone():
  mine = np.ones(40_000_000)  # 320 MB, which a candidate does not need
  (measured,) = turns.measure([candidate('one')], rounds=1, say=lambda _: None)
  assert 0 < measured.megabytes < mine.nbytes / 1e6


def test_more_images_per_cpu_second_need_fewer_cores():
  rows = input_pipeline.hosts({'slow': 100.0, 'fast': 1000.0}).splitlines()
  # 60 % of 8 x 61.6 TFLOP/s, at 6 x 4.6 GFLOP an image.
  assert rows[2] == '| TPU v3-8 | 96 | S/16 | 10,713 | **107** | 10.7 |'


def test_a_summary_has_the_models_of_a_run_in_one_table(tmp_path):
  def measured(name, seconds, error='', **facts):
    peer = turns.Candidate(name, 'module:function', {}, 16)
    wall = [] if error else [seconds, seconds]
    return turns.Measured(peer, error, 1.0, wall, wall, 100, facts)

  product = turns.Candidate('jax', 'module:function', {}, amount=1.0)
  groups = {
    'matrix products, float32': [
      turns.Measured(product, '', 1.0, [2.0], [2.0], 10)
    ],
    'vit_x, training, batch 16, float32': [
      measured('vit_jax', 4.0, _macs=5e9),
      measured('timm', 8.0),
      measured('equimo', 2.0),
    ],
    'volo_x, training, batch 16, float32': [
      measured('vit_jax', 1.0),
      measured('timm', 0.5, error='ValueError'),
    ],
  }
  turns.write_json(tmp_path / 'runs.json', groups)
  assert turns.read_json(tmp_path / 'runs.json')[1] == groups
  # 4 images per second with 6 operations for each of 5e9 multiply-accumulates
  # are 0.12 TFLOP/s of the 0.5 that a large product reaches.
  assert summary.tables(tmp_path / 'runs.json') == {
    'training, float32': (
      '| model | batch | img/s | MFU | to timm | to equimo | MB |\n'
      '|---|---|---|---|---|---|---|\n'
      '| vit_x | 16 | 4 | 0.24 | 2.00 (2.00) | 0.50 (0.50) | 100, 100 |\n'
      '| volo_x | 16 | 16 |  | failed |  | 100, 100 |'
    )
  }
  turns.write_json(tmp_path / 'input.json', {'input pipeline': []})
  with pytest.raises(ValueError, match="'input pipeline'.*train_step"):
    summary.tables(tmp_path / 'input.json')
