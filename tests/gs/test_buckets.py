"""Every kind of file in a bucket, with a real server of the storage API."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests.data.test_layout_fuzz import Workers
from tests.gs.conftest import free_port
from tests.helpers import ROOT, saved_state
from vit_jax import files
from vit_jax.buckets import BucketError
from vit_jax.cli import parser
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.data.token_labels import TokenLabels
from vit_jax.files import as_path, write_atomically
from vit_jax.parallel.workdir_lock import WorkdirInUse, WorkdirLock
from vit_jax.teachers import stored_logits

pytestmark = pytest.mark.slow
CLASSES = ('moss', 'sand', 'snow')
RECIPE = """
from tests.helpers import tiny_config

def get_config(arg=None):
  return tiny_config(
    run=dict(steps=8),
    data=dict(source='packed', dir={data!r}, num_classes=None,
              num_examples=None, batch_size=8, crop='pad_crop', mixup=0.2,
              device_cache='off', threads=2),
    model=dict(dropout=0.1),
    optim=dict(ema=0.9),
    mesh=dict(preset='fsdp'),
    eval=dict(batch_size=8),
    log=dict(checkpoint_steps=2, keep_latest=2, tensorboard=True),
  )
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Noisy PNG files of about 6 kB, in train/ and test/."""
  root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for split, count in (('train', 16), ('test', 4)):
    for name in CLASSES:
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (44, 44, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / name / f'{i}.png')
  return root


@pytest.fixture(scope='module')
def packed(images, bucket):
  """The images as packed data in the bucket."""
  assert parser.main(['pack', str(images), f'{bucket}/packed']) == 0
  return f'{bucket}/packed'


def test_the_workers_of_a_pipeline_write_to_a_bucket(images, bucket, tmp_path):
  """From images in the bucket; what they finished is removed at the end."""
  local = pack(images, tmp_path / 'packed', shards=2)
  for path in images.rglob('*.*'):
    write_atomically(
      f'{bucket}/in/{path.relative_to(images)}', path.read_bytes()
    )
  out = as_path(f'{bucket}/pipeline')
  assert pack(f'{bucket}/in', out, shards=2, runner=Workers('')) == local
  assert {p.name for p in out.iterdir()} == {
    p.name for p in (tmp_path / 'packed').iterdir()
  }


def test_packed_data_is_the_same_in_a_bucket(images, packed, tmp_path):
  local = pack(images, tmp_path / 'packed')
  for split, meta in local.items():
    there = open_source('packed', split=split, data_dir=packed)
    here = open_source('packed', split=split, data_dir=str(tmp_path / 'packed'))
    assert there.fingerprint == here.fingerprint == meta['fingerprint']
    assert [there[i] for i in range(len(there))] == [
      here[i] for i in range(len(here))
    ]
  with pytest.raises(ValueError, match='already has the split'):
    pack(images, packed)
  assert pack(images, packed, overwrite=True) == local
  names = {p.name for p in files.list_directory(packed)}
  assert not any('tmp' in name for name in names)
  # A folder of images in a bucket is read as well.
  files.upload(images / 'test', f'{packed}-folder')
  folder = open_source(
    'folder', split='train', data_dir=f'{packed}-folder', holdout=0
  )
  assert folder.class_names == list(CLASSES) and len(folder) == 12


def test_a_random_read_takes_the_bytes_of_its_record(packed, server):
  source = open_source('packed', split='train', data_dir=packed)
  source[0]  # reads where the records are
  for i in (40, 3, 17):
    requests, received = server.requests, server.received
    size = len(source[i]['image'])
    assert server.requests - requests == 1
    assert size < server.received - received < size + 1500


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
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
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
      codes = [p.wait(400) for p in self.processes]
      assert codes == [0, 0], self.output()
    finally:
      self.kill()
    assert not (self.folder / 'gs:').exists()

  def kill(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()


@pytest.fixture(scope='module')
def trained(packed, bucket, tmp_path_factory):
  """A workdir of two processes that were killed after step 2 or later."""
  folder, workdir = tmp_path_factory.mktemp('job') / 'killed', f'{bucket}/run'
  job = Job(folder, workdir, packed)
  committed = files.as_path(workdir) / 'checkpoints/2/commit_success.txt'
  deadline = time.monotonic() + 300
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
    *range(1, 9)
  ]
  assert json.loads((root / 'summary.json').read_text())['step'] == 8
  assert (root / 'config.json').exists()
  assert len(files.list_directory(root / 'tensorboard')) >= 1
  assert {p.name for p in files.list_directory(root / 'checkpoints')} == {
    '6',
    '8',
  }
  for noise in ('redential', 'Traceback', 'rename', 'retries'):
    assert noise not in job.output()


def test_a_workdir_in_a_bucket_is_locked(bucket):
  with WorkdirLock(f'{bucket}/locked') as lock:
    with pytest.raises(WorkdirInUse, match=f'in use by process {os.getpid()}'):
      WorkdirLock(f'{bucket}/locked').__enter__()
    lock.check()
  assert not files.list_directory(f'{bucket}/locked')


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

  data = ('--source', 'packed', '--data-dir', packed)
  for out in (f'{bucket}/logits', 'logits'):
    run('teacher-logits', workdir, *data, '-o', out)
  from vit_jax.parallel.mesh import make_mesh

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


def test_paths_that_cannot_be_used(bucket):
  with pytest.raises(BucketError, match='no bucket gs://other-bucket: correct'):
    files.as_path('gs://other-bucket/x')
  assert files.as_path(pathlib.Path(f'{bucket}/x')) == files.as_path(
    f'{bucket}/x'
  )
  assert files.list_directory(f'{bucket}/nothing') == []
  assert files.create(f'{bucket}/once', 'a')
  assert not files.create(f'{bucket}/once', 'b')
  with pytest.raises(RuntimeError):
    with files.open_atomically(f'{bucket}/half') as file:
      file.write('half')
      raise RuntimeError
  assert not files.as_path(f'{bucket}/half').exists()
