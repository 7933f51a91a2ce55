"""The order of batches, repeats, corrupt images."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.data.helpers import assert_same, recipe, take, write_images
from tests.helpers import ROOT
from vit_jax.data import loader, pack
from vit_jax.data.sources.opening import open_source
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import data as recipe_data


@pytest.fixture(scope='module')
def digits():
  return open_source('digits', split='train')


@pytest.mark.parametrize(
  'keys,message',
  [
    ({'crop': 'random'}, 'data.crop=.random.: must be one of inception'),
    ({'interpolation': 'cubic'}, 'data.interpolation'),
    ({'area': (0.5, 0.1)}, 'data.area'),
    ({'area': (0.5,)}, 'data.area'),
    ({'pad': -1}, 'data.pad=-1'),
    ({'aspect': (2.0, 1.0)}, 'aspect'),
    ({'crop': 'resize_crop'}, 'needs data.resize'),
    ({'crop': 'resize_crop', 'resize': 8}, 'at least 16'),
    ({'randaugment': 'randaug'}, 'data.randaugment takes'),
    ({'repeats': 0}, 'data.repeats=0'),
    ({'repeats': 3, 'repeat_groups': 5}, 'data.repeat_groups=5'),
    ({'crop_sampling': 'width'}, 'data.crop_sampling'),
    ({'rounding': 'up'}, 'data.rounding'),
    ({'rounding': 'truncate', 'interpolation': 'bicubic'}, 'Pillow rounds'),
    ({'rounding': 'none', 'randaugment': 'google(2,15)'}, 'need integers'),
    ({'interpolation': 'area', 'randaugment': 'rand-m9'}, 'timm.s RandAug'),
    ({'jpeg_dct': 'quick'}, 'data.jpeg_dct'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'threads': -1}, 'data.threads=-1'),
  ],
)
def test_bad_data_keys(digits, keys, message):
  with pytest.raises(ValueError, match=message):
    recipe_data.train_batches(recipe(**keys), digits)


def test_a_run_resumes_at_its_step(digits):
  cfg = recipe(batch_size=100)  # an epoch has 14.37 batches
  every = take(18, digits, cfg)
  for start in (1, 14, 17):
    assert_same(take(18 - start, digits, cfg, start_step=start), every[start:])
  index = np.concatenate([b['index'] for b in every])
  assert len(set(index[:1437])) == 1437  # a batch may span two epochs
  assert not np.array_equal(index[:300], index[1437:1737])
  _, labels = digits.arrays()
  for b in every:
    np.testing.assert_array_equal(b['label'], labels[b['index']])
  cfg.run.seed = 4
  other = recipe_data.train_batches(cfg, digits)
  assert not np.array_equal(next(other)['index'], every[0]['index'])


@pytest.mark.parametrize(
  'keys',
  [
    {},
    {'repeats': 3},
    {'repeats': 3, 'repeat_groups': 4},
    {'randaugment': 'google(2,10)'},
  ],
)
def test_global_batches_do_not_depend_on_the_processes(digits, keys):
  cfg = recipe(**keys)
  whole = take(4, digits, cfg)
  for count in (2, 4):
    slices = [
      take(4, digits, cfg, process_index=p, process_count=count)
      for p in range(count)
    ]
    joined = [
      {k: np.concatenate([p[step][k] for p in slices]) for k in whole[0]}
      for step in range(4)
    ]
    assert_same(joined, whole)
  with pytest.raises(ValueError, match='multiple of the number of processes'):
    take(1, digits, cfg, process_count=5)


def test_threads_do_not_change_the_stream(tmp_path):
  write_images(tmp_path, {'a': 10, 'b': 10})
  source = open_source('folder', split='train', data_dir=str(tmp_path))
  want = take(4, source, recipe(threads=0))
  assert_same(take(4, source, recipe(threads=4)), want)


def test_processes_of_workers_do_not_change_the_stream(tmp_path):
  write_images(tmp_path / 'in', {'a': 10, 'b': 10})
  pack.pack(tmp_path / 'in', tmp_path / 'out')
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  want = take(5, source, recipe(threads=0))
  assert_same(take(5, source, recipe(threads=1, workers=2)), want)


def test_repeated_augmentation(digits):
  cfg = recipe(repeats=3, batch_size=30, area=(0.3, 0.6))
  batches = take(3, digits, cfg)
  index = np.concatenate([b['index'] for b in batches]).reshape(-1, 3)
  assert (index == index[:, :1]).all()
  assert len(set(index[:, 0])) == 30
  images = batches[0]['image'].reshape(10, 3, 16, 16, 3)
  assert all(not np.array_equal(i[0], i[1]) for i in images)
  plain = take(1, digits, recipe(batch_size=30))[0]['index']
  np.testing.assert_array_equal(index[:, 0], plain)


def test_repeats_are_spread_over_groups(digits):
  """As DeiT's sampler gives each process every P-th of the repeated images."""
  groups, batch_size = 4, 32
  batches = take(
    3,
    digits,
    recipe(repeats=3, repeat_groups=groups, batch_size=batch_size),
  )
  plain = take(1, digits, recipe(batch_size=batch_size))[0]['index']
  repeated = np.repeat(plain, 3)
  for step, batch in enumerate(batches):
    share = repeated[step * batch_size : (step + 1) * batch_size]
    for g, group in enumerate(batch['index'].reshape(groups, -1)):
      assert len(set(group)) == len(group)  # distinct images
      np.testing.assert_array_equal(group, share[g::groups])


def test_geometry_and_token_labels(digits):
  seen = []

  def labels(index, geometry):
    seen.append(geometry)
    return np.full((2, 2), index, np.int32)

  batch = take(1, digits, recipe(), geometry=True, token_labels=labels)[0]
  assert batch['box'].shape == (12, 4) and batch['flip'].dtype == bool
  assert batch['token_labels'].shape == (12, 2, 2)
  np.testing.assert_array_equal(batch['token_labels'][:, 0, 0], batch['index'])
  assert {tuple(np.float32(g.box)) for g in seen} >= set(
    map(tuple, batch['box'])
  )


@pytest.mark.parametrize(
  'n,batch,count',
  [(25, 8, 1), (25, 8, 4), (24, 8, 2), (3, 8, 8), (360, 128, 4)],
)
def test_evaluation_counts_each_example_once(n, batch, count):
  source = open_source('digits', split=f'test[:{n}]')
  passes = [
    list(
      loader.eval_batches(
        source,
        Preprocessing((8, 8)),
        batch_size=batch,
        process_index=p,
        process_count=count,
        threads=0,
      )
    )
    for p in range(count)
  ]
  assert {len(p) for p in passes} == {-(-n // batch)}
  seen = []
  for batches in passes:
    for b in batches:
      assert b['image'].shape == (batch // count, 8, 8, 3)
      assert not b['image'][b['mask'] == 0].any()
      for i, index in enumerate(b['index']):
        if b['mask'][i]:
          seen.append(index)
          np.testing.assert_array_equal(b['image'][i], source[index]['image'])
          assert b['label'][i] == source[index]['label']
  assert sorted(seen) == list(range(n))


@pytest.fixture
def damaged(tmp_path):
  """A folder of 40 images, three of which cannot be read."""
  write_images(tmp_path, {'a': 20, 'b': 20})
  source = open_source(
    'folder', split='train', holdout=0.0, data_dir=str(tmp_path)
  )
  for i in (4, 5, 30):
    path = pathlib.Path(source.describe(i))
    path.write_bytes(path.read_bytes()[:-30] if i != 30 else b'')
  return source


def test_corrupt_images_are_replaced_by_the_next(damaged, caplog):
  cfg = recipe(max_bad_fraction=0.1, batch_size=10)
  with recipe_data.train_batches(cfg, damaged) as batches:
    epoch = [next(batches) for _ in range(4)]
    index = sorted(np.concatenate([b['index'] for b in epoch]))
    assert index == sorted(
      [i for i in range(40) if i not in (4, 5, 30)] + [6, 6, 31]
    )
    assert set(batches.bad) == {damaged.describe(i) for i in (4, 5, 30)}
  for path, reason in batches.bad.items():
    assert 'BadImage' in reason and path in caplog.text
  assert_same(take(2, damaged, cfg, start_step=2), epoch[2:])
  assert_same(
    take(4, damaged, recipe(max_bad_fraction=0.1, batch_size=10, threads=3)),
    epoch,
  )


def test_too_many_corrupt_images_stop_the_run(damaged):
  with recipe_data.train_batches(
    recipe(max_bad_fraction=0.05), damaged
  ) as batches:
    with pytest.raises(loader.TooManyBadImages) as stop:
      for _ in range(8):
        next(batches)
  message = str(stop.value)
  assert '3 of 40' in message and 'data.max_bad_fraction=0.05' in message
  assert all(damaged.describe(i) in message for i in (4, 5, 30))


def test_corrupt_images_are_masked_in_evaluation(damaged):
  batches = loader.eval_batches(
    damaged,
    Preprocessing((16, 16)),
    batch_size=16,
    threads=0,
    max_bad_fraction=0.1,
  )
  total = sum(b['mask'].sum() for b in batches)
  assert total == 37 and len(batches.bad) == 3
  with pytest.raises(loader.TooManyBadImages):
    list(
      loader.eval_batches(
        damaged, Preprocessing((16, 16)), batch_size=16, threads=0
      )
    )


def test_all_images_corrupt(tmp_path):
  write_images(tmp_path, {'a': 3})
  for path in (tmp_path / 'a').iterdir():
    path.write_bytes(b'x')
  source = open_source(
    'folder', split='train', holdout=0.0, data_dir=str(tmp_path)
  )
  with pytest.raises(loader.TooManyBadImages, match='in a row'):
    take(1, source, recipe(max_bad_fraction=1.0))


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
  """Also when it is killed, and so cannot tell them."""
  write_images(tmp_path / 'train', {'a': 8, 'b': 8})
  with subprocess.Popen(
    [sys.executable, '-m', 'tests.data.worker_parent', str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': ROOT},
  ) as parent:
    lines = [line.strip() for line in iter(parent.stdout.readline, 'ready\n')]
    workers = [int(line) for line in lines if line.isdigit()]
    assert workers
    parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
      time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'
