"""Sources of examples: every source, sub-splits, errors."""

import io
import subprocess
import sys

import numpy as np
import pytest

from tests.data.helpers import (
  encode,
  make_image,
  write_images,
  write_tfds,
)
from vit_jax.data.decode import decode
from vit_jax.data.sources.opening import open_source


@pytest.fixture(scope='module')
def digits():
  return open_source('digits', split='train')


def test_digits_split():
  train = open_source('digits', split='train')
  test = open_source('digits', split='test')
  assert (len(train), len(test)) == (1437, 360)
  ids = lambda s: {s[i]['id'] for i in range(len(s))}
  assert not ids(train) & ids(test) and len(ids(train) | ids(test)) == 1797
  _, labels = test.arrays()
  counts = np.bincount(labels)
  assert counts.min() >= 34 and counts.max() <= 37  # stratified
  example = train[0]
  assert example['image'].shape == (8, 8, 3)
  assert example['image'].dtype == np.uint8
  assert train.arrays()[0].max() == 255
  assert train.fingerprint != test.fingerprint


@pytest.mark.parametrize(
  'split,n',
  [
    ('train[:98%]', 1408),
    ('train[98%:]', 29),
    ('train[-5:]', 5),
    ('train[10:30]', 20),
    ('test+train[:40]', 400),
    ('train[:1437]', 1437),
  ],
)
def test_sub_splits(digits, split, n):
  source = open_source('digits', split=split)
  assert len(source) == n
  images, labels = source.arrays()
  assert images.shape == (n, 8, 8, 3) and labels.shape == (n,)
  np.testing.assert_array_equal(source[n - 1]['image'], images[-1])
  assert source[-1]['id'] == source[n - 1]['id']
  with pytest.raises(IndexError):
    source[n]


def test_sub_splits_are_disjoint_and_complete(digits):
  subsets = [
    open_source('digits', split=s) for s in ('train[:33%]', 'train[33%:]')
  ]
  ids = [p[i]['id'] for p in subsets for i in range(len(p))]
  assert ids == [digits[i]['id'] for i in range(len(digits))]
  assert subsets[0].fingerprint != subsets[1].fingerprint


@pytest.mark.parametrize(
  'split,message',
  [
    ('train[', 'cannot read'),
    ('train[:x]', 'cannot read'),
    ('train[5:5]', 'is empty'),
    ('valid', "no split 'valid'.*train, test"),
  ],
)
def test_bad_splits(split, message):
  with pytest.raises(ValueError, match=message):
    open_source('digits', split=split)


def test_unknown_source_names_the_near_one():
  with pytest.raises(ValueError, match="did you mean 'folder'.*packed"):
    open_source('foldr', split='train')


def test_synthetic_is_a_function_of_the_index():
  make = lambda split: open_source(
    'synthetic', split=split, num_examples=20, num_classes=3, image_size=(9, 9)
  )
  a, b, test = make('train'), make('train'), make('test')
  assert len(a) == 20 and a.image_shape == (9, 9)
  np.testing.assert_array_equal(a[7]['image'], b[7]['image'])
  assert not np.array_equal(a[7]['image'], a[10]['image'])
  assert not np.array_equal(a[7]['image'], test[7]['image'])
  assert [a[i]['label'] for i in range(4)] == [0, 1, 2, 0]
  with pytest.raises(ValueError, match='num_classes=-1'):
    open_source('synthetic', split='train', num_classes=-1)


@pytest.mark.parametrize('test_name', ['val', 'validation', 'test'])
def test_folder_with_splits(tmp_path, test_name):
  write_images(tmp_path / 'train', {'b': 3, 'a': 2, 'c': 1}, '.JPG')
  write_images(tmp_path / test_name, {'a': 1, 'c': 2}, '.Jpeg')
  (tmp_path / 'train' / 'a' / 'notes.txt').write_text('not an image')
  train = open_source('folder', split='train', data_dir=str(tmp_path))
  assert train.class_names == ['a', 'b', 'c'] and len(train) == 6
  for split in ('test', 'val', 'validation'):
    test = open_source('folder', split=split, data_dir=str(tmp_path))
    assert sorted(test[i]['label'] for i in range(3)) == [0, 2, 2]
  image = decode(train[0]['image'])
  assert image.shape == (20, 24, 3)
  assert train[0]['id'].startswith('train/')


def test_flat_folder_holds_out_a_fixed_fraction(tmp_path):
  write_images(tmp_path, {'cat': 10, 'dog': 20, 'one': 1}, '.png')
  train, test = (
    open_source('folder', split=s, data_dir=str(tmp_path), holdout=0.2)
    for s in ('train', 'test')
  )
  ids = lambda s: [s[i]['id'] for i in range(len(s))]
  assert not set(ids(train)) & set(ids(test))
  assert len(train) + len(test) == 31
  count = lambda s: [
    sum(s[i]['label'] == c for i in range(len(s))) for c in range(3)
  ]
  assert count(test) == [2, 4, 0] and count(train) == [8, 16, 1]
  again = open_source(
    'folder', split='test', data_dir=str(tmp_path), holdout=0.2
  )
  assert ids(again) == ids(test) and again.fingerprint == test.fingerprint
  labels = [train[i]['label'] for i in range(len(train))]
  assert labels != sorted(labels)  # not in the order of the classes


@pytest.mark.parametrize(
  'make,message',
  [
    (lambda r: None, 'has no images'),
    (lambda r: (r / 'x.jpg').write_bytes(b''), 'no class directories'),
    (lambda r: write_images(r / 'test', {'a': 1}), 'no train directory'),
    (
      lambda r: (
        write_images(r / 'train', {'a': 1}),
        write_images(r / 'val', {'a': 1, 'new': 1}),
      ),
      'has classes that .*train has not: new',
    ),
    (lambda r: write_images(r / 'train', {'a': 1}), "no split 'test'"),
  ],
)
def test_bad_folders(tmp_path, make, message):
  make(tmp_path)
  with pytest.raises(ValueError, match=message):
    open_source('folder', split='test', data_dir=str(tmp_path))


def test_missing_directories(tmp_path):
  for name in ('folder', 'packed'):
    with pytest.raises(ValueError, match='does not exist'):
      open_source(name, split='train', data_dir=str(tmp_path / 'no'))
    with pytest.raises(ValueError, match='needs data.dir'):
      open_source(name, split='train')
  file = tmp_path / 'file'
  file.write_text('x')
  with pytest.raises(ValueError, match='is a file'):
    open_source('folder', split='train', data_dir=str(file))
  with pytest.raises(ValueError, match='not a packed data set'):
    open_source('packed', split='train', data_dir=str(tmp_path))
  with pytest.raises(ValueError, match='tfds build mnist .*=array_record'):
    open_source('tfds:mnist', split='train', data_dir=str(tmp_path))


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  import tensorflow_datasets as tfds

  root = tmp_path_factory.mktemp('tfds')
  image = tfds.features.Image(shape=(20, 24, 3), encoding_format='png')
  pixels = lambda i: io.BytesIO(encode(make_image(i), 'PNG'))
  write_tfds(
    root,
    'tiny',
    {
      'image': image,
      'label': tfds.features.ClassLabel(names=['no', 'yes']),
      'file_name': tfds.features.Text(),
    },
    {
      split: [
        {'image': pixels(i), 'label': i % 2, 'file_name': f'{i}.png'}
        for i in range(n)
      ]
      for split, n in (('train', 10), ('validation', 4))
    },
  )
  # The features of imagenet2012_real.
  write_tfds(
    root,
    'tiny_real',
    {
      'image': image,
      'original_label': tfds.features.ClassLabel(num_classes=5),
      'real_label': tfds.features.Sequence(
        tfds.features.ClassLabel(num_classes=5)
      ),
      'file_name': tfds.features.Text(),
    },
    {
      'validation': [
        {
          'image': pixels(i),
          'original_label': 0,
          'real_label': labels,
          'file_name': f'{i}.png',
        }
        for i, labels in enumerate(([3], [], [1, 4]))
      ]
    },
  )
  return root


def test_tfds_reads_reals_own_labels(tfds_dir, caplog):
  with caplog.at_level('INFO'):
    source = open_source(
      'tfds:tiny_real', split='validation', data_dir=str(tfds_dir)
    )
  assert "reading feature 'real_label', not original_label" in caplog.text
  assert source.multi_label and source.num_classes == 5
  assert [source[i]['label'] for i in range(3)] == [[3], [], [1, 4]]
  _, labels = source.arrays()
  np.testing.assert_array_equal(labels.sum(axis=1), [1, 0, 2])


def test_tfds(tfds_dir):
  source = open_source('tfds:tiny', split='train[:80%]', data_dir=str(tfds_dir))
  assert len(source) == 8 and source.class_names == ['no', 'yes']
  assert source.image_shape == (20, 24)
  example = source[3]
  assert isinstance(example['image'], bytes) and example['label'] == 1
  assert example['id'] == '3.png'
  np.testing.assert_array_equal(decode(example['image']), make_image(3))
  images, labels = source.arrays()
  np.testing.assert_array_equal(images[5], make_image(5))
  assert labels.tolist() == [0, 1] * 4
  # The split 'test' is called 'validation' in this data set.
  assert (
    len(open_source('tfds:tiny:1.0.0', split='test', data_dir=str(tfds_dir)))
    == 4
  )


@pytest.mark.parametrize(
  'name,message',
  [
    ('tiny:2.0.0', 'version 2.0.0 is not in .*1.0.0'),
    ('tini', 'Near names there: tiny'),
    ('tiny/cfg', 'does not exist'),
  ],
)
def test_bad_tfds(tfds_dir, name, message):
  with pytest.raises(ValueError, match=message):
    open_source(f'tfds:{name}', split='train', data_dir=str(tfds_dir))


def test_reading_tfds_imports_no_tensorflow(tfds_dir):
  code = f"""
import sys
from vit_jax.data.loader import train_batches
from vit_jax.data.sources.opening import open_source
from vit_jax.data.transforms import TrainTransform
source = open_source('tfds:tiny', split='train', data_dir={str(tfds_dir)!r})
with train_batches(
    source, TrainTransform((16, 16)), batch_size=4, seed=0) as batches:
  assert next(batches)['image'].shape == (4, 16, 16, 3)
print('tensorflow' in sys.modules, 'torch' in sys.modules,
      'matplotlib' in sys.modules)
"""
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.split() == ['False'] * 3
