"""Several processes on one machine train a recipe, and equal one process.

A job starts, is preempted, resumes with other processes and other shardings,
and ends with the losses of an uninterrupted run on one device.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.helpers import ROOT, saved_state, tiny_config
from tests.multihost_worker import LOST_AFTER
from vit_jax import train

STEPS = 20
RECIPE = """
from tests.parallel.test_multihost import recipe

def get_config(arg=None):
  return recipe()
"""


def recipe():
  """20 steps; images augmented on the host and mixed on the device."""
  config = tiny_config(
    run=dict(steps=STEPS),
    data=dict(crop='pad_crop', device_cache='off', mixup=0.2, num_examples=84),
    model=dict(dropout=0.1, drop_path=0.1),
    optim=dict(ema=0.9, accumulate=2),
    eval=dict(every_steps=10, batch_size=20, ema=True),
    log=dict(checkpoint_steps=5, keep_latest=4),
  )
  return config


class Job:
  """Processes of vit_jax.main; `finish` gives their exit codes."""

  def __init__(
    self, folder, workdirs, *flags, event='none', devices=2, own_flags=None
  ):
    self.folder = pathlib.Path(folder)
    (self.folder / 'recipe.py').write_text(RECIPE)
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': ROOT,
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    self.workdirs, self.processes = workdirs, []
    for i, workdir in enumerate(workdirs):
      with open(self.folder / f'console_{i}.txt', 'w') as console:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              os.path.join(ROOT, 'tests/multihost_worker.py'),
              event,
              f'--config={self.folder}/recipe.py',
              f'--workdir={workdir}',
              f'--coordinator=127.0.0.1:{port}',
              f'--num_processes={len(workdirs)}',
              f'--process_id={i}',
              *flags,
              *(own_flags or {}).get(i, ()),
            ],
            env=environment,
            cwd=ROOT,
            stdout=console,
            stderr=subprocess.STDOUT,
          )
        )

  def finish(self, timeout=240) -> list[int]:
    deadline = time.monotonic() + timeout
    try:
      return [
        p.wait(max(1, deadline - time.monotonic())) for p in self.processes
      ]
    finally:
      for p in self.processes:
        p.kill()

  def output(self, i) -> str:
    """The output of process i, from its pipe or its log file."""
    own = pathlib.Path(self.workdirs[i]) / f'logs/process_{i}.txt'
    return (self.folder / f'console_{i}.txt').read_text() + (
      own.read_text() if own.exists() else ''
    )

  def outputs(self) -> str:
    return '\n'.join(map(self.output, range(len(self.processes))))


def run(folder, workdir, count, *flags, code=0, **kwargs) -> Job:
  """A job of `count` processes that all end with `code`."""
  folder.mkdir(exist_ok=True)
  job = Job(folder, [workdir] * count, *flags, **kwargs)
  codes = job.finish()
  assert codes == [code] * count, job.outputs()
  return job


def alone(workdir, devices=1, **mesh):
  """The recipe in this process, on some of its devices."""
  config = recipe()
  config.mesh.update(mesh)
  return train.train_and_evaluate(config, workdir, jax.devices()[:devices])


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The workdir of an uninterrupted run on one device."""
  workdir = tmp_path_factory.mktemp('one')
  alone(workdir)
  return workdir


def metrics(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  values = {}
  for line in map(json.loads, lines):
    assert not any(
      (line['step'], k) in values
      for k in line
      if k not in ('step', 'epoch', 'seconds')
    ), f'step {line["step"]} is there twice'
    values.update({(line['step'], k): v for k, v in line.items()})
  return values


def assert_equal_runs(a, b):
  """The same losses and results to 1e-5, and the same final parameters.

  Key biases are not compared. They do not change a softmax, so their gradient
  is rounding noise, which Adam amplifies.
  """
  a_metrics, b_metrics = metrics(a), metrics(b)
  for step in range(1, STEPS + 1):
    assert abs(a_metrics[step, 'loss'] - b_metrics[step, 'loss']) < 1e-5, step
  for step in (10, STEPS):
    for key in ('test_top1', 'test_top5', 'test_examples'):
      assert a_metrics[step, key] == b_metrics[step, key]
    key = step, 'test_loss'
    assert abs(a_metrics[key] - b_metrics[key]) < 1e-5
  a_state, b_state = saved_state(a), saved_state(b)
  assert a_state.keys() == b_state.keys()
  for key in a_state:
    if key.startswith(('params/', 'ema/')) and not key.endswith('key/bias'):
      np.testing.assert_allclose(
        a_state[key], b_state[key], rtol=0, atol=1e-4, err_msg=key
      )


def steps_of(workdir) -> set[int]:
  folder = pathlib.Path(workdir) / 'checkpoints'
  return {int(p.name) for p in folder.iterdir() if p.name.isdigit()}


@pytest.fixture(scope='module')
def preempted(tmp_path_factory):
  """Two processes start under fsdp; one gets SIGTERM at step 7."""
  folder = tmp_path_factory.mktemp('preempted')
  workdir = folder / 'run'
  job = run(
    folder, workdir, 2, '--config.mesh.preset=fsdp', event='SIGTERM:1:7', code=3
  )
  return workdir, job


@pytest.mark.slow
def test_preemption_of_one_process_saves_the_same_step_everywhere(preempted):
  workdir, job = preempted
  told = [
    re.findall(r'stopped at step (\d+) of 20', job.output(i)) for i in range(2)
  ]
  assert told[0] and told[0] == told[1], job.outputs()
  step = int(told[0][0])
  assert 7 <= step < STEPS and max(steps_of(workdir)) == step
  assert int(saved_state(workdir)['step']) == step


@pytest.mark.slow
def test_each_process_has_its_own_log(preempted):
  workdir, job = preempted
  log = (workdir / 'log.txt').read_text()
  assert re.search(r'parameters.*84 training examples', log)
  assert re.search(r'step 5/20 .*loss', log)
  other = (workdir / 'logs/process_1.txt').read_text()
  assert 'stopped at step' in other and 'step 5/20' not in other
  console = (job.folder / 'console_1.txt').read_text()
  assert 'stopped at step' not in console
  assert not list(workdir.glob('.shared*'))


@pytest.mark.slow
def test_two_processes_go_on_and_equal_one(one, preempted, tmp_path):
  workdir = shutil.copytree(preempted[0], tmp_path / 'run')
  job = run(tmp_path, workdir, 2, '--config.mesh.preset=zero')
  assert re.search(r'resumed step \d+', job.output(0))
  assert_equal_runs(one, workdir)
  ours, theirs = (
    json.loads((w / 'summary.json').read_text()) for w in (workdir, one)
  )
  assert (ours['processes'], ours['devices']) == (2, 4)
  assert (
    ours['results']['test']['examples']
    == (theirs['results']['test']['examples'])
  )


def test_one_process_goes_on_from_two(one, preempted, tmp_path):
  workdir = shutil.copytree(preempted[0], tmp_path / 'run')
  alone(workdir, devices=2)
  assert_equal_runs(one, workdir)


def until(workdir, step, to) -> pathlib.Path:
  """A copy of a finished workdir as it was after a step."""
  shutil.copytree(workdir, to)
  (to / 'summary.json').unlink()
  for later in steps_of(to):
    if later > step:
      shutil.rmtree(to / 'checkpoints' / str(later))
  return to


def test_a_killed_process_ends_the_job_and_is_named(one, tmp_path):
  """Two processes resume the run of one, and the second dies at step 8."""
  workdir = until(one, 5, tmp_path / 'run')
  tmp_path.joinpath('job').mkdir()
  job = Job(
    tmp_path / 'job',
    [workdir] * 2,
    '--config.mesh.preset=fsdp',
    event='SIGKILL:1:8',
  )
  job.processes[1].wait(200)
  start = time.monotonic()
  codes = job.finish(timeout=100)
  assert codes == [1, -9], job.outputs()
  assert time.monotonic() - start < 4 * LOST_AFTER + 10
  assert re.search(
    r'process 1 \(\S+\) is gone: its connection closed', job.output(0)
  )
  # Until then its metrics are those of one process.
  want, got = metrics(one), metrics(workdir)
  for step in (6, 7):
    assert abs(want[step, 'loss'] - got[step, 'loss']) < 1e-5
  assert steps_of(workdir) == {5}


@pytest.mark.slow
@pytest.mark.parametrize('who', [0, 1])
def test_a_torn_step_and_a_killed_process(one, tmp_path, who):
  """Both fall back to the step before; one is killed; both start again."""
  workdir = until(one, 10, tmp_path / 'run')
  files = [p for p in (workdir / 'checkpoints/10').rglob('*') if p.is_file()]
  torn = max(files, key=lambda p: p.stat().st_size)
  torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
  tmp_path.joinpath('job').mkdir()
  flag = '--config.mesh.preset=fsdp'
  event = f'SIGKILL:{who}:8'
  job = Job(tmp_path / 'job', [workdir] * 2, flag, event=event, devices=1)
  codes = job.finish()
  assert codes[who] == -9 and codes[1 - who] == 1, job.outputs()
  assert 'resumed step 5' in job.output(0)
  assert re.search(
    rf'process {who} \(\S+\) is gone: its connection', job.output(1 - who)
  )
  assert (workdir / 'checkpoints/10.unreadable').is_dir()
  again = run(tmp_path / 'again', workdir, 2, flag, devices=1)
  assert 'resumed step 5' in again.output(0)
  assert_equal_runs(one, workdir)


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
  workdirs = [tmp_path / 'a', tmp_path / 'b']
  job = Job(tmp_path, workdirs)
  assert job.finish() == [1, 1], job.outputs()
  for i in range(2):
    assert re.search(
      r'error: .*workdir .* is not shared: process 1 \(\S+\)', job.output(i)
    ), job.output(i)
  assert not any((w / 'checkpoints').exists() for w in workdirs)


@pytest.mark.parametrize(
  'preset',
  [
    *(
      pytest.param(p, marks=pytest.mark.slow) for p in ('data', 'zero', 'fsdp')
    ),
    'fsdp_tensor',
  ],
)  # two processes share the heads, and read the same images
def test_four_processes_equal_one(one, tmp_path, preset):
  workdir = tmp_path / 'run'
  run(tmp_path, workdir, 4, f'--config.mesh.preset={preset}', devices=1)
  assert_equal_runs(one, workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
  'chain',
  [
    ((4, 'fsdp'), (1, 'data'), (2, 'fsdp_tensor')),
    ((1, 'zero'), (4, 'fsdp_tensor'), (2, 'data')),
    ((2, 'data'), (2, 'fsdp'), (4, 'zero')),
  ],
  ids=str,
)
def test_restore_across_presets_and_process_counts(one, tmp_path, chain):
  """Three jobs one after the other, the first two cut after a checkpoint."""
  workdir = tmp_path / 'run'
  for i, (count, preset) in enumerate(chain):
    flag = f'--config.mesh.preset={preset}'
    run(tmp_path / f'job_{i}', workdir, count, flag, devices=4 // count)
    if i < 2:
      workdir = until(workdir, 5 * (i + 1), tmp_path / f'run_{i}')
  assert_equal_runs(one, workdir)


@pytest.mark.slow
def test_preemption_of_one_of_four(one, tmp_path):
  workdir = tmp_path / 'run'
  flag = '--config.mesh.preset=fsdp'
  run(tmp_path / 'a', workdir, 4, flag, event='SIGTERM:2:6', code=3, devices=1)
  run(tmp_path / 'b', workdir, 4, flag, devices=1)
  assert_equal_runs(one, workdir)
