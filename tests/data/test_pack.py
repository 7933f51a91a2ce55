"""Packing folders and tars into shards."""

import io
import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from tests.data.helpers import (
  encode,
  make_image,
  recipe,
  take,
  write_images,
)
from vit_jax.data import pack
from vit_jax.data.batches import TooManyBadImages, why_bad
from vit_jax.data.decode import decode
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.packed import OtherShard
from vit_jax.recipe import data as recipe_data


def read_all(directory, split='train'):
  source = open_source('packed', split=split, data_dir=str(directory))
  return source, [source[i] for i in range(len(source))]


def test_pack_folder(tmp_path):
  write_images(tmp_path / 'in' / 'train', {'a': 5, 'b': 7})
  write_images(tmp_path / 'in' / 'val', {'b': 3})
  bad = tmp_path / 'in' / 'train' / 'a' / '0.jpg'
  bad.write_bytes(bad.read_bytes()[:-50])
  seen = []
  result = pack.pack(
    tmp_path / 'in',
    tmp_path / 'out',
    shards=3,
    progress=lambda done, total: seen.append((done, total)),
  )
  assert seen[:12] == [(i, 12) for i in range(1, 13)]
  assert result['train']['bad'] == 1
  assert result['train']['bad_examples'][0]['id'] == 'a/0.jpg'
  assert result['train']['examples_per_class'] == [4, 7]
  source, examples = read_all(tmp_path / 'out')
  assert len(source) == 11 and source.class_names == ['a', 'b']
  assert source.image_shape == (20, 24) and not source.multi_label
  for e in examples:  # the same bytes, with the same labels
    assert e['image'] == (tmp_path / 'in' / 'train' / e['id']).read_bytes()
    assert source.class_names[e['label']] == e['id'][0]
  names = [e['id'] for e in examples]
  assert names != sorted(names) and len(set(names)) == 11
  _, test = read_all(tmp_path / 'out', 'test')
  assert [e['label'] for e in test] == [1, 1, 1]  # train's class numbers
  assert len(list((tmp_path / 'out').glob('train-*-of-00003.*'))) == 3
  assert not list((tmp_path / 'out').glob('*.tmp'))
  # The same inputs give the same data, another seed gives another order.
  again = pack.pack(tmp_path / 'in', tmp_path / 'again', shards=2)
  other = pack.pack(tmp_path / 'in', tmp_path / 'other', shuffle_seed=5)
  assert again['train']['fingerprint'] == result['train']['fingerprint']
  assert other['train']['fingerprint'] != result['train']['fingerprint']


def write_tar(path, files, mode='w'):
  with tarfile.open(path, mode) as tar:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def test_pack_tars(tmp_path):
  image = lambda i: encode(make_image(i))
  directories = write_tar(
    tmp_path / 'd.tar',
    {'./n1/x.JPEG': image(0), './n2/y.jpg': image(1), 'n2/readme.txt': b''},
  )
  flat = [
    write_tar(
      tmp_path / f'{c}.tar', {f'{c}_{i}.JPEG': image(i) for i in range(2)}
    )
    for c in ('n1', 'n2')
  ]
  nested = write_tar(
    tmp_path / 'all.tar', {f.name: f.read_bytes() for f in flat}
  )
  for inputs, count in ((directories, 2), (flat, 4), (nested, 4)):
    out = tmp_path / f'out_{pathlib.Path(str(inputs)).name[:3]}_{count}'
    pack.pack(inputs, out)
    source, examples = read_all(out)
    assert len(examples) == count and source.class_names == ['n1', 'n2']
    for e in examples:
      assert source.class_names[e['label']] in e['id']
      decode(e['image'])


def test_pack_labels_files(tmp_path):
  files = {f'{i}.jpg': encode(make_image(i)) for i in range(4)}
  tar = write_tar(tmp_path / 'images.tar', files)
  labels = tmp_path / 'labels.json'
  labels.write_text(
    json.dumps(
      {'0.jpg': ['cat', 'dog'], '1': [], '2.jpg': 'owl', '3.jpg': ['dog']}
    )
  )
  pack.pack(tar, tmp_path / 'out', labels_file=labels)
  source, examples = read_all(tmp_path / 'out')
  assert source.multi_label and source.class_names == ['cat', 'dog', 'owl']
  got = {pathlib.Path(e['id']).name: e['label'] for e in examples}
  assert got == {'0.jpg': [0, 1], '1.jpg': [], '2.jpg': [2], '3.jpg': [1]}
  batch = take(1, source, recipe(batch_size=4))[0]
  assert batch['label'].dtype == np.float32
  assert batch['label'].shape == (4, 3)
  want = np.zeros((4, 3))
  for row, i in enumerate(batch['index']):
    want[row, examples[i]['label']] = 1
  np.testing.assert_array_equal(batch['label'], want)

  table = tmp_path / 'labels.csv'
  table.write_text(
    'file,label\n' + ''.join(f'{i}.jpg,{i % 3}\n' for i in range(4))
  )
  pack.pack(tar, tmp_path / 'numbers', labels_file=table)
  source, examples = read_all(tmp_path / 'numbers')
  assert source.num_classes == 3 and source.class_names is None
  assert all(
    e['label'] == int(pathlib.Path(e['id']).stem) % 3 for e in examples
  )
  table.write_text('0.jpg,1;2\n1.jpg,0,3\n2.jpg,1\n3.jpg,1\n')
  result = pack.pack(tar, tmp_path / 'multi', labels_file=table)
  assert result['train']['multi_label'] and result['train'][
    'examples_per_class'
  ] == [1, 3, 1, 1]


def test_pack_shrinks(tmp_path):
  (tmp_path / 'in' / 'a').mkdir(parents=True)
  (tmp_path / 'in' / 'b').mkdir()
  small, large = encode(make_image(0, 16, 20)), encode(make_image(1, 80, 60))
  (tmp_path / 'in' / 'a' / 's.jpg').write_bytes(small)
  (tmp_path / 'in' / 'b' / 'l.jpg').write_bytes(large)
  pack.pack(tmp_path / 'in', tmp_path / 'out', short_side=30)
  source, examples = read_all(tmp_path / 'out')
  by_name = {e['id']: e['image'] for e in examples}
  assert by_name['a/s.jpg'] == small
  assert decode(by_name['b/l.jpg']).shape == (40, 30, 3)
  assert source.image_shape is None


def test_pack_refuses(tmp_path):
  one = write_tar(tmp_path / 'one.tar', {'x.jpg': encode(make_image(0))})
  zipped = write_tar(tmp_path / 'z.tar.gz', {'a/x.jpg': b''}, 'w:gz')
  folder = write_images(tmp_path / 'in', {'a': 2})
  labels = tmp_path / 'l.json'
  labels.write_text('{"a/0.jpg": 0}')
  for inputs, options, message in (
    (one, {}, 'of one class'),
    (zipped, {}, 'compressed by gzip, .*unpack it'),
    (tmp_path / 'no', {}, 'does not exist'),
    (folder, {'labels_file': labels}, '1 of 2 images have no entry'),
    (folder, {'labels_file': tmp_path / 'none.csv'}, 'does not exist'),
    (folder, {'shards': 0}, 'shards=0'),
    (labels, {}, 'neither'),
  ):
    with pytest.raises(ValueError, match=message):
      pack.pack(inputs, tmp_path / 'out', **options)
  assert not list((tmp_path / 'out').iterdir())
  pack.pack(folder, tmp_path / 'out', shards=2)
  with pytest.raises(ValueError, match="already has the split 'train'"):
    pack.pack(folder, tmp_path / 'out')
  write_images(tmp_path / 'test', {'new': 1})
  with pytest.raises(ValueError, match="packed 'train': new"):
    pack.pack(tmp_path / 'test', tmp_path / 'out', split='test')
  pack.pack(folder, tmp_path / 'out', shards=1, overwrite=True)
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'train-00000-of-00001.array_record',
    'train.packed.json',
  ]
  (tmp_path / 'out' / 'train-00000-of-00001.array_record').unlink()
  with pytest.raises(ValueError, match='lacks 1 of 1 shards'):
    open_source('packed', split='train', data_dir=str(tmp_path / 'out'))


def test_an_interrupted_pack_leaves_nothing(tmp_path):
  folder = write_images(tmp_path / 'in', {'a': 2, 'b': 2})

  def stop(done, total):
    if done == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    pack.pack(folder, tmp_path / 'out', shards=2, progress=stop)
  assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('kind', ['flipped', 'truncated', 'empty', 'zeros'])
def test_damaged_shards_are_bad_images(tmp_path, kind):
  """Named by shard and record, counted, and left out."""
  write_images(tmp_path / 'in' / 'train', {'a': 8, 'b': 8})
  pack.pack(tmp_path / 'in', tmp_path / 'out', shards=4)
  shard = sorted((tmp_path / 'out').glob('*.array_record'))[1]
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  half = bytes(data[: len(data) // 2])
  shard.write_bytes(
    {
      'flipped': bytes(data),
      'truncated': half,
      'empty': b'',
      'zeros': bytes(len(data)),
    }[kind]
  )
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  config = recipe(max_bad_fraction=0.5, batch_size=16)
  with recipe_data.train_batches(config, source) as batches:
    assert next(batches)['image'].shape == (16, 16, 16, 3)
    assert set(batches.bad) == {f'{shard} record {i}' for i in range(4)}
    assert all('damaged record' in why for why in batches.bad.values())
  with pytest.raises(TooManyBadImages, match=f'{shard.name} record 0'):
    take(1, source, recipe(max_bad_fraction=0.01, batch_size=16))


@pytest.mark.parametrize('others', ['names', 'images', 'labels'])
def test_shards_of_another_data_set_are_refused(tmp_path, others):
  """As many records of the same names, such as after an incomplete copy."""
  images, options = write_images(tmp_path / 'in', {'cat': 4, 'dog': 4}), {}
  pack.pack(images, tmp_path / 'out', shards=2)
  if others == 'names':
    images = write_images(tmp_path / 'in2', {'ant': 4, 'bee': 4})
  elif others == 'images':
    images = write_images(tmp_path / 'in2', {'dog': 4, 'cat': 4})
  else:
    options['labels_file'] = tmp_path / 'labels.csv'
    options['labels_file'].write_text(
      ''.join(f'cat/{i}.jpg,dog\ndog/{i}.jpg,cat\n' for i in range(4))
    )
  pack.pack(images, tmp_path / 'out2', shards=2, **options)
  name = 'train-00001-of-00002.array_record'
  shutil.copy(tmp_path / 'out2' / name, tmp_path / 'out' / name)
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  source[0]
  with pytest.raises(OtherShard, match=f'{name} is not the shard.*pack again'):
    source[7]
  config = recipe(max_bad_fraction=1.0, batch_size=8)
  with pytest.raises(OtherShard):
    take(1, source, config)


def test_labels_that_are_no_class_are_bad_images(tmp_path):
  write_images(tmp_path / 'in' / 'train', {'a': 3, 'b': 1})
  pack.pack(tmp_path / 'in', tmp_path / 'out')
  meta = tmp_path / 'out' / 'train.packed.json'
  values = json.loads(meta.read_text())
  del values['checksum']  # as version 0.1.0 wrote it
  meta.write_text(json.dumps({**values, 'num_classes': 1, 'class_names': None}))
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  reasons = [why_bad(source, i) for i in range(4)]
  assert sorted(reasons)[:3] == [''] * 3
  assert 'label 1 is none of the 1 classes 0..0' in max(reasons)
