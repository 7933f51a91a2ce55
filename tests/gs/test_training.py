"""Training in a bucket by two processes, and commands on the run."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.compiler import FAST_COMPILE
from tests.gs.conftest import free_port
from tests.helpers import ROOT, saved_state
from vit_jax import files
from vit_jax.cli import parser
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.data.token_labels import TokenLabels
from vit_jax.parallel.mesh import make_mesh
from vit_jax.teachers import stored_logits

pytestmark = pytest.mark.slow
RECIPE = """
from tests.helpers import tiny_config

def get_config(arg=None):
  return tiny_config(
    run=dict(steps=4),
    data=dict(source='packed', dir={data!r}, num_classes=None,
              num_examples=None, batch_size=8, crop='pad_crop', mixup=0.2,
              device_cache='off', threads=2),
    model=dict(dropout=0.1),
    optim=dict(ema=0.9),
    mesh=dict(preset='fsdp'),
    eval=dict(batch_size=8),
    log=dict(checkpoint_steps=2, keep_latest=1, tensorboard=True),
  )
"""


class Job:
  """Two processes that train the recipe."""

  def __init__(self, folder, workdir, data):
    folder.mkdir(exist_ok=True)
    (folder / 'recipe.py').write_text(RECIPE.format(data=data))
    port, self.folder = free_port(), folder
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': ROOT,
      'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {FAST_COMPILE}',
    }
    self.processes = []
    for i in range(2):
      with open(folder / f'console_{i}.txt', 'w') as console:
        self.processes.append(
          subprocess.Popen(
            [
              *(sys.executable, '-m', 'vit_jax.main'),
              f'--config={folder}/recipe.py',
              f'--workdir={workdir}',
              f'--coordinator=127.0.0.1:{port}',
              *('--num_processes=2', f'--process_id={i}'),
            ],
            env=environment,
            cwd=folder,
            stdout=console,
            stderr=subprocess.STDOUT,
          )
        )

  def output(self) -> str:
    return '\n'.join(
      (self.folder / f'console_{i}.txt').read_text() for i in range(2)
    )

  def finish(self) -> None:
    try:
      codes = [p.wait(900) for p in self.processes]
      assert codes == [0, 0], self.output()
    finally:
      self.kill()
    assert not (self.folder / 'gs:').exists()

  def kill(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()


@pytest.fixture(scope='module')
def trained(packed, bucket, server, tmp_path_factory):
  """A workdir of two processes that were killed after step 2 or later."""
  folder, workdir = tmp_path_factory.mktemp('job') / 'killed', f'{bucket}/run'
  job = Job(folder, workdir, packed)
  # Asking the server many times a second would take the time of the job.
  committed = server.folder / 'run/checkpoints/2/commit_success.txt'
  deadline = time.monotonic() + 900
  while not committed.exists():
    assert time.monotonic() < deadline, job.output()
    assert job.processes[0].poll() is None, job.output()
    time.sleep(0.05)
  job.kill()
  job = Job(folder, workdir, packed)
  job.finish()
  return workdir, job


def test_a_killed_job_ends_as_one_that_was_not(
  trained, images, tmp_path, monkeypatch
):
  """The second job has local data and a local workdir."""
  workdir, job = trained
  pack(images, tmp_path / 'packed')
  Job(tmp_path / 'job', tmp_path / 'run', str(tmp_path / 'packed')).finish()
  there, here = saved_state(workdir), saved_state(tmp_path / 'run')
  assert there.keys() == here.keys()
  for key, value in here.items():
    np.testing.assert_array_equal(there[key], value, err_msg=key)
  root = files.as_path(workdir)
  lines = (root / 'metrics.jsonl').read_text().splitlines()
  assert [x['step'] for x in map(json.loads, lines) if 'loss' in x] == [
    *range(1, 5)
  ]
  assert json.loads((root / 'summary.json').read_text())['step'] == 4
  assert (root / 'config.json').exists()
  assert len(files.list_directory(root / 'tensorboard')) >= 1
  steps = files.list_directory(root / 'checkpoints')
  assert [p.name for p in steps] == ['4']
  for noise in ('redential', 'Traceback', 'rename', 'retries'):
    assert noise not in job.output()


def test_commands_read_and_write_buckets(
  trained, packed, images, bucket, capsys
):
  """predict, convert, export, teacher-logits, token-labels, pseudo-label."""
  workdir, photos = trained[0], str(images / 'test')

  def run(*argv):
    assert parser.main(list(argv)) == 0, capsys.readouterr()

  def table(weights, name):
    run('predict', weights, photos, f'--csv={bucket}/{name}.csv')
    return files.as_path(f'{bucket}/{name}.csv').read_text()

  expected = table(workdir, 'run')
  assert expected.count('\n') == 1 + 12 * 3
  run('convert', workdir, f'{bucket}/w.safetensors')
  run('export', workdir, f'{bucket}/w.stablehlo', '--platforms', 'cpu')
  assert table(f'{bucket}/w.safetensors', 'converted') == expected
  exported = table(f'{bucket}/w.stablehlo', 'exported')
  assert exported.count('\n') == expected.count('\n')
  assert files.list_directory(f'{bucket}/run.csv.unfinished') == []

  data = ('--source', 'packed', '--data', packed)
  for out in (f'{bucket}/logits', 'logits'):
    run('teacher-logits', workdir, *data, '-o', out)
  mesh = make_mesh('data')
  np.testing.assert_array_equal(
    stored_logits.put_logits(f'{bucket}/logits', mesh),
    stored_logits.put_logits('logits', mesh),
  )
  for out in (f'{bucket}/labels', 'labels'):
    run('token-labels', workdir, *data, '-o', out)
  there, here = TokenLabels(f'{bucket}/labels'), TokenLabels('labels')
  assert len(there) == len(here) == 48
  for i in (0, 31, 47):
    np.testing.assert_array_equal(there[i], here[i])
  out = f'{bucket}/pseudo'
  run('pseudo-label', workdir, photos, out, '--threshold', '0')
  assert len(open_source('packed', split='pseudo', data_dir=out)) == 12
