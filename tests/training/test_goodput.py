"""What the time of a run goes into, also over restarts."""

import json
import re
import shutil
import time

import jax
import pytest

from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.data import prefetch
from vit_jax.training.goodput import KINDS, Goodput


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


def test_every_second_is_counted_once():
  clock = Clock()
  goodput = Goodput(clock)
  clock.now += 5
  goodput.was('time_start')
  clock.now += 7
  goodput.was('time_compilation')
  for _ in range(3):
    with goodput.spent_on('time_input'):
      clock.now += 1
    clock.now += 10
  with pytest.raises(OSError), goodput.spent_on('time_checkpoints'):
    clock.now += 2
    raise OSError('a full disk')
  with goodput.spent_on('time_evaluation'):
    clock.now += 3
  assert goodput.totals() == {
    'time_steps': 30,
    'time_input': 3,
    'time_checkpoints': 2,
    'time_evaluation': 3,
    'time_compilation': 7,
    'time_start': 5,
    'time_repeated': 0,
    'steps_repeated': 0,
    'goodput': 0.6,
  }
  assert goodput.line() == (
    'goodput 60.0% of 50s: steps 30s, input wait 3s, checkpoints 2s, '
    'evaluation 3s, compilation 7s, start 5s, repeated steps 0s (0)'
  )


def test_steps_that_are_made_again_are_no_goodput():
  clock = Clock()
  goodput = Goodput(clock)
  kept = {'step': 30, 'time_steps': 60.0, 'time_start': 4.0}
  last = {'step': 42, 'time_steps': 84.0, 'time_start': 4.0}
  last.update(steps_repeated=3, time_repeated=6.0)
  goodput.resume(kept, last, resumed_step=35)
  clock.now += 4
  goodput.was('time_start')
  totals = goodput.totals()
  assert totals['time_steps'] == 60 and totals['time_start'] == 8
  assert totals['time_repeated'] == 30 and totals['steps_repeated'] == 10
  assert totals['goodput'] == round(60 / 98, 4)


def test_metrics_of_an_earlier_version_have_no_totals():
  goodput = Goodput(Clock())
  goodput.resume({}, {'step': 8, 'loss': 'nan'}, resumed_step=8)
  assert not any(goodput.totals().values())


class SlowInput(prefetch.Prefetch):
  """Every batch is at least 10 ms late."""

  def __next__(self):
    time.sleep(0.01)
    return super().__next__()


def test_a_run_and_its_restart(tmp_path, capsys, monkeypatch):
  """The restart goes on from step 3, of which steps up to 8 were logged."""
  # Batches of a tiny run are otherwise ready before the step asks for them.
  monkeypatch.setattr(prefetch, 'Prefetch', SlowInput)
  config = tiny_config(
    run=dict(steps=8),
    eval=dict(every_steps=4),
    log=dict(checkpoint_steps=3, keep_latest=4),
  )
  summaries, lines = [], []
  for _ in range(2):
    train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
    summaries.append(json.loads((tmp_path / 'summary.json').read_text()))
    text = (tmp_path / 'metrics.jsonl').read_text()
    lines.append([json.loads(line) for line in text.splitlines()])
    for step in (6, 8):
      shutil.rmtree(tmp_path / 'checkpoints' / str(step))
  first, second = (summary['goodput'] for summary in summaries)
  assert first['steps_repeated'] == 0 and second['steps_repeated'] == 5
  for totals, summary in ((first, summaries[0]), (second, summaries[1])):
    assert all(totals[kind] > 0 for kind in KINDS if kind != 'time_repeated')
    # The first batch of a fresh run is read while the run starts.
    waits = 7 + totals['steps_repeated']
    assert totals['time_input'] >= 0.01 * waits - 0.001
    total = sum(totals[kind] for kind in KINDS)
    assert totals['goodput'] == pytest.approx(
      totals['time_steps'] / total, abs=1e-3
    )
    assert total >= summary['seconds'] - 1
  assert second['time_repeated'] > 0
  assert second['time_compilation'] > first['time_compilation']
  logged = [line for line in lines[1] if 'goodput' in line]
  assert [line['step'] for line in logged] == list(range(1, 9))
  assert logged[-1]['steps_repeated'] == 5
  out = capsys.readouterr().out
  assert out.count('goodput ') == 2
  assert re.search(r'repeated steps \S+ \(5\)\n', out)
