"""A killed run that is started again ends with bit-identical parameters."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.compiler import FAST_COMPILE
from tests.helpers import ROOT, saved_state

WORKER = os.path.join(ROOT, 'tests', 'resume_worker.py')
RICH = ('optim.accumulate=2', 'optim.ema=0.9')


def start(workdir, *settings, devices=1):
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': ROOT,
    'XLA_FLAGS': (
      f'--xla_force_host_platform_device_count={devices} {FAST_COMPILE}'
    ),
  }
  return subprocess.Popen(
    [sys.executable, WORKER, str(workdir), *settings],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, code=0):
  out, _ = process.communicate(timeout=240)
  assert process.returncode == code, out
  return out


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return {x['step']: x['loss'] for x in map(json.loads, lines) if 'loss' in x}


def assert_identical(a, b):
  a, b = saved_state(a), saved_state(b)
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """An uninterrupted run, with accumulation and EMA."""
  workdir = tmp_path_factory.mktemp('straight')
  finish(start(workdir, *RICH))
  return workdir


def kill_when(process, workdir, condition, limit=120):
  deadline = time.time() + limit
  while time.time() < deadline and process.poll() is None:
    if condition(workdir):
      break
    time.sleep(0.002)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()


def at_step(step):
  def condition(workdir):
    path = workdir / 'metrics.jsonl'
    return path.exists() and len(path.read_text().splitlines()) >= step

  return condition


def during_a_save(workdir):
  folder = workdir / 'checkpoints'
  return folder.exists() and any('tmp' in p.name for p in folder.iterdir())


def test_sigkill_at_random_moments(straight, tmp_path):
  rng = random.Random(0)
  moments = [during_a_save, at_step(rng.randint(4, 8)), during_a_save]
  for moment in moments:
    process = start(tmp_path, *RICH)
    if moment is during_a_save:
      time.sleep(rng.random() * 0.01)
    kill_when(process, tmp_path, moment)
  finish(start(tmp_path, *RICH))
  assert_identical(straight, tmp_path)
  assert losses(straight) == losses(tmp_path)  # no line twice, none lost


def test_sigterm_saves_and_goes_on(straight, tmp_path):
  process = start(tmp_path, *RICH, 'log.checkpoint_steps=None')
  deadline = time.time() + 120
  while time.time() < deadline and not at_step(5)(tmp_path):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  out = finish(process, code=3)
  steps = [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
  assert len(steps) == 1, out
  finish(start(tmp_path, *RICH, 'log.checkpoint_steps=None'))
  assert_identical(straight, tmp_path)


def test_one_and_eight_devices_agree_over_20_steps(tmp_path):
  common = ('run.steps=20', 'model.dropout=0.1')
  runs = [start(tmp_path / str(n), *common, devices=n) for n in (1, 8)]
  for process in runs:
    finish(process)
  one, eight = losses(tmp_path / '1'), losses(tmp_path / '8')
  assert len(one) == 20
  for step in one:
    assert abs(one[step] - eight[step]) < 1e-5, step


def test_from_eight_devices_on_two(tmp_path):
  """The data continues, so the losses are those of the uninterrupted run."""
  finish(start(tmp_path / 'straight', devices=1))
  process = start(tmp_path / 'moved', devices=8)
  kill_when(process, tmp_path / 'moved', at_step(9))
  finish(start(tmp_path / 'moved', devices=2))
  want, got = losses(tmp_path / 'straight'), losses(tmp_path / 'moved')
  assert want.keys() == got.keys()
  for step in want:
    assert abs(want[step] - got[step]) < 1e-5, step
