"""The data sets of VTAB-1k, tiny, with the features of TFDS's own builders."""

import functools
import io

import numpy as np
import tensorflow_datasets as tfds

from tests.data.helpers import encode, write_tfds
from vit_jax.data.sources.vtab import TASKS

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


def write_all(root):
  """Writes all data sets to a data_dir of TFDS."""
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
