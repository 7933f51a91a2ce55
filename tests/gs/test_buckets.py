"""Every kind of file in a bucket, with a real server of the storage API."""

import os
import pathlib

import numpy as np
import pytest

from tests.data.test_layout_fuzz import Workers
from tests.gs.conftest import CLASSES
from tests.helpers import tiny_config
from vit_jax import files
from vit_jax.buckets import BucketError
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.files import as_path, write_atomically
from vit_jax.parallel.workdir_lock import WorkdirInUse, WorkdirLock
from vit_jax.train import train_and_evaluate

pytestmark = pytest.mark.slow


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


def test_a_training_step_reads_the_images_of_its_batch(
  packed, server, tmp_path
):
  """A request for each image, and little more than its bytes.

  Two runs differ by 24 steps; what is read before the first step and ahead of
  the last one is about the same in both.
  """
  steps, batch = (4, 28), 8

  def cost(n):
    config = tiny_config(
      run=dict(steps=n),
      data=dict(
        source='packed',
        dir=packed,
        num_classes=None,
        num_examples=None,
        batch_size=batch,
        crop='resize',
        device_cache='off',
      ),
      log=dict(every_steps=100),
    )
    before = server.requests, server.received
    train_and_evaluate(config, tmp_path / str(n))
    return np.array([server.requests, server.received]) - before

  few, many = map(cost, steps)
  requests, received = (many - few) / (steps[1] - steps[0])
  print(
    f'{requests:.1f} requests and {received:,.0f} bytes a step; '
    f'{few[0]:,} requests in the run of {steps[0]} steps'
  )
  source = open_source('packed', split='train', data_dir=packed)
  size = np.mean([len(example['image']) for example in source])
  # The read-ahead of the last step is up to 40 images more or less.
  assert batch - 2 < requests < batch + 2
  assert 0.7 * batch * size < received < 1.3 * batch * (size + 1000)
  # A shard has 48 images, so each of these reads is of one record.
  assert received < 0.3 * 48 * size


def test_a_workdir_in_a_bucket_is_locked(bucket):
  with WorkdirLock(f'{bucket}/locked') as lock:
    with pytest.raises(WorkdirInUse, match=f'in use by process {os.getpid()}'):
      WorkdirLock(f'{bucket}/locked').__enter__()
    lock.check()
  assert not files.list_directory(f'{bucket}/locked')


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
