"""The tasks of VTAB-1k: splits, labels, and folders in place of TFDS.

The data sets are written by TFDS with the features of its own builders, and the
tasks read them as they read the real ones.
"""

import pickle
import tarfile

import numpy as np
import pytest

from tests.data.helpers import write_images
from tests.data.vtab_sets import CLEVR, CLEVR_CLASSES, KITTI_CLASSES, write_all
from vit_jax.data.decode import decode
from vit_jax.data.pack import pack
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.vtab import TASKS, closest_vehicle, open_task


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('tfds')
  write_all(root)
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
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    tar.add(folder, arcname='.')
  for data in (folder, str(tmp_path / 'packed'), str(tmp_path / 'x.tar')):
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
