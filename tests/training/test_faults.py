"""Faults that a run survives, or names and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from tests.data.helpers import write_images
from tests.helpers import saved_state, tiny_config
from vit_jax import train
from vit_jax.cli.parser import main
from vit_jax.data.batches import TooManyBadImages
from vit_jax.evaluation.exact import Evaluator
from vit_jax.models.registry import create_model
from vit_jax.parallel import processes, workdir_lock
from vit_jax.parallel.workdir_lock import WorkdirInUse, WorkdirLock
from vit_jax.recipe.inputs import open_eval_sets, open_train_source
from vit_jax.recipe.keys import model_fields
from vit_jax.recipe.scan import scan
from vit_jax.training.preemption import StopSignal
from vit_jax.weights import from_state_dict
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.steps import load_params


def recipe(**sections):
  config = tiny_config(
    run=dict(steps=4), eval=dict(every_steps=2), log=dict(checkpoint_steps=2)
  )
  for name, values in sections.items():
    config[name].update(values)
  return config


def run(workdir, **sections):
  return train.train_and_evaluate(
    recipe(**sections), workdir, jax.devices()[:1]
  )


TIMED = ('seconds', 'eta_seconds', 'input_wait', 'goodput', 'steps_repeated')


def values(workdir):
  """{(step, name): value} of metrics.jsonl, without what time changes."""
  result = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(line)
    for name, value in line.items():
      if name not in ('step', 'epoch', *TIMED) and not name.startswith(
        ('img_per_sec', 'time_')
      ):
        assert (line['step'], name) not in result
        result[line['step'], name] = value
  return result


def assert_same_state(a, b):
  a, b = saved_state(a), saved_state(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The workdir of an undisturbed run, with steps 2 and 4."""
  workdir = tmp_path_factory.mktemp('trained')
  run(workdir)
  return workdir


def test_torn_files_beside_the_steps(trained, tmp_path, monkeypatch, caplog):
  """The run was killed after it saved step 2, before it evaluated it."""
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '4')
  (workdir / 'checkpoints' / '2' / 'scores.json').write_bytes(b'\xff{')
  (workdir / 'config.json').write_text('{"run": {"st')
  (workdir / 'summary.json').write_text('')
  lines = (workdir / 'metrics.jsonl').read_bytes().splitlines()
  lines = [x for x in lines if b'test_' not in x]
  lines[1:1] = [b'3', b'null', b'\xff\xfe', b'[]', b'{"step": "2"}', b'{"ste']
  (workdir / 'metrics.jsonl').write_bytes(b'\n'.join(lines))
  # The clock is set back all the time.
  now = iter(range(10**9, 0, -1))
  monkeypatch.setattr('time.time', lambda: float(next(now)))
  run(workdir)
  assert '6 damaged lines were left out' in caplog.text
  assert 'config.json cannot be read' in caplog.text
  assert_same_state(trained, workdir)
  assert values(trained) == values(workdir)
  config = json.loads((workdir / 'config.json').read_text())
  assert config == json.loads((trained / 'config.json').read_text())
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert all(json.loads(x)['seconds'] >= 0 for x in lines)


def test_verify(trained, tmp_path, capsys):
  assert main(['verify', str(trained)]) == 0
  out = capsys.readouterr().out
  assert 'checkpoints/2: sound' in out and '2 steps, 0 damaged' in out
  shutil.copytree(trained / 'checkpoints', tmp_path / 'checkpoints')
  path = max(
    (tmp_path / 'checkpoints' / '4').rglob('d/*'),
    key=lambda p: p.stat().st_size,
  )
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert main(['verify', str(tmp_path)]) == 1
  out = capsys.readouterr().out
  assert 'checkpoints/4: damaged' in out and '2 steps, 1 damaged' in out
  assert main(['verify', str(tmp_path / 'checkpoints' / '2')]) == 0
  assert main(['verify', str(tmp_path / 'nowhere')]) == 1


def test_evaluations_that_fail(trained, tmp_path, monkeypatch, caplog):
  """One that fails on the way costs nothing, the last one no training."""
  real, calls = Evaluator.__call__, []

  def failing(self, variables):
    calls.append(1)
    if len(calls) != 2:
      raise OSError('the disk is gone')
    return real(self, variables)

  monkeypatch.setattr(Evaluator, '__call__', failing)
  run(tmp_path / 'a')
  assert 'evaluation at step 2 failed, and training goes on' in caplog.text
  with pytest.raises(OSError, match='the disk is gone'):
    run(tmp_path / 'b')
  for name in 'ab':
    assert_same_state(trained, tmp_path / name)


def test_ctrl_c_finishes_the_step_and_saves(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(
    processes,
    'tick',
    lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None,
  )
  with pytest.raises(train.Preempted, match='start the same command again'):
    run(tmp_path)
  assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'2', '3'}
  run(tmp_path)
  assert_same_state(trained, tmp_path)
  assert values(trained) == values(tmp_path)


def test_a_second_ctrl_c_stops_at_once():
  before = signal.getsignal(signal.SIGINT)
  with StopSignal() as stop:
    assert not stop.reached(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.reached(1)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_weights_that_are_not_finite_are_refused(trained):
  arrays, _ = load_params(trained)
  arrays['params/head/kernel'][0, 0] = np.nan
  config = recipe()
  model = create_model(config.model.name, 5, **model_fields(config))
  with pytest.raises(WeightsError, match='head.kernel has 1 NaN or infinite'):
    from_state_dict(model, arrays, 16)


def test_small_folders_are_read_before_training(tmp_path):
  """One unreadable image of 13 is said and left out, two are an error."""
  data = tmp_path / 'data'
  write_images(data / 'train', {'a': 8, 'b': 8})
  write_images(data / 'test', {'a': 7, 'b': 6})
  first, second = sorted((data / 'test' / 'a').iterdir())[:2]
  first.write_bytes(first.read_bytes()[:100])
  config = recipe(
    data=dict(source='folder', dir=str(data), num_classes=None, batch_size=8)
  )
  said = []
  source, sets = open_train_source(config), open_eval_sets(config, 2)
  scan(config, source, sets, said.append)
  assert '1 of 13 images cannot be read' in said[0] and str(first) in said[0]
  second.write_bytes(b'')
  with pytest.raises(TooManyBadImages, match='2 of 13 images') as error:
    train.train_and_evaluate(config, tmp_path / 'run', jax.devices()[:1])
  assert str(second) in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_a_second_run_is_refused(trained):
  before = (trained / 'metrics.jsonl').read_bytes()
  with WorkdirLock(trained):
    with pytest.raises(WorkdirInUse, match=f'in use by process {os.getpid()}'):
      run(trained)
  assert (trained / 'metrics.jsonl').read_bytes() == before
  assert not (trained / workdir_lock.FILE).exists()


def write_lock(workdir, **changes):
  """The lock of another run, that differs from one of this process."""
  with WorkdirLock(workdir):
    record = json.loads((workdir / workdir_lock.FILE).read_text())
  record.update(token='other', **changes)
  (workdir / workdir_lock.FILE).write_text(json.dumps(record))
  return record


@pytest.mark.parametrize('store', ['local', 'objects'])
@pytest.mark.parametrize(
  'kind',
  [
    'killed',
    'same number',
    'host',
    'torn',
    'no start',
    'nested',
    'pipe',
    'inf',
  ],
)
def test_locks_of_runs_that_are_gone(tmp_path, kind, store):
  """On an object store as well, which can only read, write and delete."""
  if kind == 'killed':
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    write_lock(tmp_path, pid=process.pid)
  elif kind == 'same number':  # such as 1, in a container that was restarted
    write_lock(tmp_path, pid_start='0')
  elif kind == 'host':
    write_lock(tmp_path, machine='elsewhere', host='elsewhere')
  elif kind == 'no start':
    write_lock(tmp_path, pid=0, pid_start='')
  elif kind == 'inf':
    write_lock(tmp_path, pid=float('inf'))
  elif kind == 'pipe':
    os.mkfifo(tmp_path / workdir_lock.FILE)
  else:
    text = {'torn': '{"ho', 'nested': '[' * 100_000}[kind]
    (tmp_path / workdir_lock.FILE).write_text(text)
  said = []
  lock = WorkdirLock(tmp_path, said.append, stale_after=0.1)
  lock._local = store == 'local'
  with lock:
    lock.check()
    record = json.loads((tmp_path / workdir_lock.FILE).read_text())
    assert record['pid'] == os.getpid() and record['token'] != 'other'
  assert 'which is gone: this run takes it over' in said[-1]
  assert not list(tmp_path.iterdir())


def test_a_directory_instead_of_the_lock(tmp_path):
  (tmp_path / workdir_lock.FILE).mkdir()
  with pytest.raises(WorkdirInUse, match='lock.json is a directory.*remove'):
    WorkdirLock(tmp_path, stale_after=30).__enter__()


def test_a_lock_with_a_heartbeat_from_another_host(tmp_path):
  record = write_lock(tmp_path, machine='elsewhere', host='elsewhere')
  path = tmp_path / workdir_lock.FILE
  beat = threading.Timer(
    0.1, lambda: path.write_text(json.dumps({**record, 'heartbeat': 1}))
  )
  beat.start()
  with pytest.raises(WorkdirInUse, match='on elsewhere'):
    WorkdirLock(tmp_path, stale_after=30, period=0.05).__enter__()
  beat.join()


def test_a_run_that_was_halted_writes_nothing_more(tmp_path):
  """Another run has taken the workdir over."""
  with WorkdirLock(tmp_path, period=0.05) as lock:
    other = {'host': 'elsewhere', 'pid': 7, 'token': 'other'}
    (tmp_path / workdir_lock.FILE).write_text(json.dumps(other))
    with pytest.raises(WorkdirInUse, match='taken over by process 7 on else'):
      lock.check()
  assert json.loads((tmp_path / workdir_lock.FILE).read_text()) == other
