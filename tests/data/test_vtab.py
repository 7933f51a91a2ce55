"""The tasks of VTAB-1k: splits, labels, and folders in place of TFDS.

The data sets are written by TFDS with the features of its own builders, and the
tasks read them as they read the real ones.
"""

import functools
import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.helpers import encode, write_images, write_tfds
from vit_jax.data.decode import decode
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.vtab import TASKS, closest_vehicle, open_task

SIZES = {'train': 20, 'validation': 8, 'test': 10}
# Data sets of which TFDS has other splits than train, validation and test.
SPLITS = {
  **dict.fromkeys(('eurosat/rgb', 'resisc45', 'dsprites'), ('train',)),
  **dict.fromkeys(
    (
      *('caltech101', 'cifar100', 'oxford_iiit_pet', 'svhn_cropped'),
      'smallnorb',
    ),
    ('train', 'test'),
  ),
}
# CLEVR: the number of objects and the distance of the closest one.
CLEVR = [(3, 7.0), (10, 8.0), (4, 8.25), (5, 10.5)]
CLEVR_CLASSES = ['up to 8', 'up to 8', 'to 8.5', 'above 10']
# KITTI: types of the objects (3 is a pedestrian) and their distances.
KITTI = [
  ([3, 0], [2.0, 9.0]),
  ([3], [5.0]),
  ([2, 1], [30.0, 7.5]),
  ([], []),
  ([0], [20.5]),
]
KITTI_CLASSES = [1, 3, 0, 3, 2]


@functools.cache
def image(height, width, channels, value):
  pixels = np.full((height, width, channels), value, np.uint8)
  return encode(pixels[:, :, 0] if channels == 1 else pixels, 'PNG')


def value_of(feature, key, i):
  """A value of a feature for example i."""
  kind = type(feature).__name__
  if kind == 'Image':
    height, width, channels = (x or 12 for x in feature.shape)
    return io.BytesIO(image(height, width, channels, i % 2))
  if kind == 'ClassLabel':
    return i % feature.num_classes
  if kind in ('Text', 'str'):
    return f'{i}'
  if kind == 'BBoxFeature':
    return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
  if key == 'question_answer':
    return []
  return np.zeros(feature.shape, feature.np_dtype)


def objects_of(name, features, i):
  """The objects of a picture, as CLEVR and KITTI have them."""
  if name == 'clevr':
    count, closest = CLEVR[i % len(CLEVR)]
    changes = [
      {'pixel_coords': np.array([0, 0, closest + j], np.float32)}
      for j in range(count)
    ]
  else:
    changes = [
      {'type': kind, 'location': np.array([0, 0, z], np.float32)}
      for kind, z in zip(*KITTI[i % len(KITTI)], strict=True)
    ]
  fields = features['objects'].feature.items()
  common = {key: value_of(feature, key, 0) for key, feature in fields}
  return [{**common, **change} for change in changes]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A data_dir of TFDS with all data sets of VTAB."""
  root = tmp_path_factory.mktemp('tfds')
  for name in {task.data for task in TASKS.values()}:
    features = tfds.builder(name, data_dir=root / 'none').info.features
    make = lambda i: {
      key: objects_of(name, features, i)
      if key == 'objects'
      else value_of(feature, key, i)
      for key, feature in features.items()
    }
    write_tfds(
      root,
      name,
      dict(features.items()),
      {
        split: [make(i) for i in range(SIZES[split])]
        for split in SPLITS.get(name, SIZES)
      },
    )
  return str(root)


def open_(root, task, split):
  return open_source(f'vtab:{task}', split=split, data_dir=root)


def ids(source):
  return [source.describe(i) for i in range(len(source))]


@pytest.mark.parametrize('task', TASKS)
def test_every_task_trains_on_other_images_than_it_tests(root, task):
  source, test = open_(root, task, 'train8val1'), open_(root, task, 'test')
  assert len(source) == 9 and source.num_classes == TASKS[task].classes
  assert (
    len(source.class_names)
    == len(set(source.class_names))
    == (source.num_classes)
  )
  assert source.name == f'vtab:{task}/train8val1'
  for split, i in (('train8val1', 8), ('test', 0)):
    example = open_(root, task, split)[i]
    pixels = decode(example['image'])
    assert pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 <= example['label'] < source.num_classes
  # All images of a split have the same names here, so numbers are compared.
  pickled = pickle.loads(pickle.dumps(source))
  assert pickled[3]['label'] == source[3]['label']
  assert test.fingerprint != source.fingerprint
  assert test.class_names == source.class_names


@pytest.mark.parametrize(
  'task, train, val, test',
  [
    # 90 % of 20 images, as 63,000 of CLEVR's 70,000.
    ('cifar100', range(8), [18], range(10)),
    ('pets', range(8), [16], range(10)),
    ('dtd', range(8), [0], range(10)),
    ('eurosat', range(8), [12], range(16, 20)),
    ('smallnorb_azimuth', range(8), [0], range(5, 10)),
    ('clevr_count', range(8), [18], range(8)),
    ('dsprites_location', range(8), [16], range(18, 20)),
  ],
)
def test_the_images_are_those_of_the_benchmark(root, task, train, val, test):
  number = lambda source: [
    int(x.rsplit('/')[-1].rsplit('[')[0]) for x in ids(source)
  ]
  assert number(open_(root, task, 'train8val1')) == [*train, *val]
  assert number(open_(root, task, 'train8')) == [*train]
  assert number(open_(root, task, 'test')) == [*test]
  trainval = open_(root, task, 'trainval')
  assert set(number(trainval)) >= {*train, *val}


def labels(root, task, n):
  source = open_(root, task, f'train{n}')
  return [source[i]['label'] for i in range(n)]


def test_labels_of_clevr(root):
  assert labels(root, 'clevr_count', 4) == [n - 3 for n, _ in CLEVR]
  source = open_(root, 'clevr_distance', 'train4')
  names = [source.class_names[source[i]['label']] for i in range(4)]
  assert names == CLEVR_CLASSES


def test_labels_of_kitti(root):
  assert labels(root, 'kitti_distance', 5) == KITTI_CLASSES
  no_objects = {'objects': {'type': [], 'location': np.zeros((0, 3))}}
  assert closest_vehicle(no_objects) == 3


def test_labels_of_dsprites_are_16_bins(root):
  """32 positions in pairs, 40 orientations in groups of two and three."""
  assert labels(root, 'dsprites_location', 8) == [i // 2 for i in range(8)]
  assert labels(root, 'dsprites_orientation', 8) == [0, 0, 0, 1, 1, 2, 2, 2]
  sprites = open_(root, 'dsprites_location', 'train')
  pixels = [np.unique(sprites[i]['image']).tolist() for i in range(2)]
  assert pixels == [[0], [255]]  # stored as 0 and 1


def test_labels_of_smallnorb(root):
  source = open_(root, 'smallnorb_azimuth', 'train')
  assert source.num_classes == 18  # of 20 degrees
  assert labels(root, 'smallnorb_elevation', 9) == list(range(9))


def test_unknown_tasks_and_splits(root):
  with pytest.raises(ValueError, match="did you mean 'clevr_count'.*eurosat"):
    open_(root, 'clevr_counts', 'train')
  with pytest.raises(ValueError, match="no split 'train0'; it has train, val"):
    open_(root, 'dtd', 'train0')
  with pytest.raises(ValueError, match=r"such as 'train400val100'"):
    open_(root, 'dtd', 'train800val200')


def test_data_that_is_not_prepared_names_the_command(tmp_path):
  with pytest.raises(
    ValueError, match='tfds build sun397/tfds --data_dir=.* --file_format=array'
  ):
    open_(str(tmp_path), 'sun397', 'train')


def test_a_folder_is_split_as_the_data_set(tmp_path):
  """EuroSAT has no test images of its own: 60, 20 and 20 %."""
  folder = str(
    write_images(tmp_path / 'x', {f'class {i}': 5 for i in range(10)})
  )
  pack([folder], tmp_path / 'packed')
  for data in (folder, str(tmp_path / 'packed')):
    splits = [open_(data, 'eurosat', s) for s in ('train', 'val', 'test')]
    assert [len(s) for s in splits] == [30, 10, 10]
    assert len({x for s in splits for x in ids(s)}) == 50
    small = open_(data, 'eurosat', 'train8val2')
    assert ids(small) == ids(splits[0])[:8] + ids(splits[1])[:2]
  with pytest.raises(ValueError, match='37 classes, and .* has 10'):
    open_(folder, 'pets', 'train')


def test_test_images_are_not_trained_on(tmp_path):
  """A folder with train/ and test/ has no third split for the 200 images."""
  for split in ('train', 'test'):
    write_images(tmp_path / split, {'no': 3, 'yes': 3})
  with pytest.raises(ValueError, match='add the folder val/'):
    open_task('patch_camelyon', 'train2val2', str(tmp_path))
  write_images(tmp_path / 'val', {'no': 3, 'yes': 3})
  source = open_task('patch_camelyon', 'train2val2', str(tmp_path))
  assert [x.split('/')[-3] for x in ids(source)] == ['train'] * 2 + ['val'] * 2
