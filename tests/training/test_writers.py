"""metrics.jsonl, TensorBoard events, config.json and summary.json."""

import json
import math
import pathlib
import struct

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tests.helpers import ROOT
import vit_jax
from vit_jax.training.writers import Writer


def lines(workdir):
  return [
    json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


def events(file):
  """The events of one TensorBoard file, in their order."""
  data = file.read_bytes()
  while data:  # length, its checksum, the event, its checksum
    (length,) = struct.unpack('<Q', data[:8])
    yield Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]


def scalars(workdir):
  """{name: {step: value}} that TensorBoard shows for a directory.

  A START event purges what earlier files hold of its step and of later ones.
  """
  shown = {}
  files = sorted((workdir / 'tensorboard').glob('events*'))
  for event in (e for file in files for e in events(file)):
    if event.session_log.status == SessionLog.START:
      for steps in shown.values():
        for step in [s for s in steps if s >= event.step]:
          del steps[step]
    for value in event.summary.value:
      shown.setdefault(value.tag, {})[event.step] = value.simple_value
  return shown


def test_lines_and_events(tmp_path):
  writer = Writer(tmp_path)
  writer.write(1, {'loss': 2.0, 'lr': jax.numpy.float32(0.5)}, epoch=0.25)
  writer.write(1, {'top1': 0.75}, epoch=0.25, prefix='test_')
  writer.close()
  first, second = lines(tmp_path)
  assert first.pop('seconds') >= 0
  assert first == {'step': 1, 'epoch': 0.25, 'loss': 2.0, 'lr': 0.5}
  assert second['test_top1'] == 0.75
  assert scalars(tmp_path) == {
    'train/loss': {1: 2.0},
    'train/lr': {1: 0.5},
    'eval/test_top1': {1: 0.75},
  }


def test_values_that_json_lacks(tmp_path):
  writer = Writer(tmp_path, tensorboard=False)
  writer.write(1, {'loss': math.nan, 'grad_norm': math.inf})
  assert lines(tmp_path)[0]['loss'] == 'nan'
  assert lines(tmp_path)[0]['grad_norm'] == 'inf'
  assert not (tmp_path / 'tensorboard').exists()
  writer.summary({'results': {'loss': math.nan, 'all': [math.inf, 1.0]}})
  text = (tmp_path / 'summary.json').read_text()
  summary = json.loads(text, parse_constant=lambda name: pytest.fail(name))
  assert summary['results'] == {'loss': None, 'all': [None, 1.0]}


def test_a_resumed_run_keeps_what_is_not_run_again(tmp_path):
  """The values of the step that it resumes from stay too."""
  writer = Writer(tmp_path)
  for step in (1, 2, 3, 4):
    writer.write(step, {'loss': step})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 5, "lo')  # killed while writing
  writer = Writer(tmp_path, resumed_step=2)
  assert [x['step'] for x in lines(tmp_path)] == [1, 2]
  writer.write(3, {'loss': 30.0})
  writer.close()
  assert [x['loss'] for x in lines(tmp_path)] == [1, 2, 30]
  assert scalars(tmp_path) == {'train/loss': {1: 1, 2: 2, 3: 30}}


def test_a_run_that_was_killed_before_its_first_checkpoint(tmp_path):
  writer = Writer(tmp_path)
  writer.write(1, {'loss': 1.0})
  writer.close()
  writer = Writer(tmp_path, resumed_step=0)
  writer.write(2, {'loss': 2.0})
  writer.close()
  assert [x['step'] for x in lines(tmp_path)] == [2]
  assert scalars(tmp_path) == {'train/loss': {2: 2.0}}


def test_config_and_summary(tmp_path):
  writer = Writer(tmp_path, tensorboard=False)
  writer.config({'run': {'steps': 3}})
  writer.summary({'step': 3})
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config == {'run': {'steps': 3}}
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['step'] == 3 and summary['seconds'] >= 0
  assert summary['versions']['vit_jax'] == vit_jax.__version__
  assert summary['versions']['jax'] == jax.__version__
  assert summary['devices'] == jax.device_count()
  assert summary['processes'] == 1
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {'config.json', 'metrics.jsonl', 'summary.json'}


def test_other_processes_write_nothing(tmp_path):
  writer = Writer(tmp_path / 'run', enabled=False)
  writer.write(1, {'loss': 1.0})
  writer.config({})
  writer.summary({})
  writer.close()
  assert not (tmp_path / 'run').exists()


def test_pandas_reads_the_metrics_as_the_readme_says(tmp_path):
  pandas = pytest.importorskip('pandas')
  readme = pathlib.Path(ROOT, 'README.md').read_text()
  assert 'pandas.read_json(path, lines=True)' in readme
  writer = Writer(tmp_path, tensorboard=False)
  writer.write(1, {'loss': 1.5}, epoch=0.5)
  writer.write(2, {'loss': math.nan}, epoch=1.0)
  writer.write(2, {'top1': 0.5}, epoch=1.0, prefix='test_')
  frame = pandas.read_json(tmp_path / 'metrics.jsonl', lines=True)
  assert list(frame['step']) == [1, 2, 2] and frame['loss'].dtype == float
  assert frame.groupby('step')['test_top1'].last()[2] == 0.5
