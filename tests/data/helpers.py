"""Small images, folders and batches for the tests of data."""

import io
import json

import numpy as np
from PIL import Image

from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.keys import default_config


def make_image(seed, height=20, width=24):
  """A smooth random image, which JPEG compression hardly changes."""
  small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((width, height)))


def encode(array, kind='JPEG', **options):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, kind, **options)
  return buffer.getvalue()


def write_images(root, per_class, suffix='.jpg'):
  """Writes `per_class`, {class: count}, as files root/class/i.jpg."""
  for c, (name, count) in enumerate(per_class.items()):
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}{suffix}').write_bytes(
        encode(make_image(100 * c + i))
      )
  return root


def recipe(**keys):
  """A recipe with small images, and other keys of section `data`."""
  config = default_config()
  config.run.seed = 3
  config.data.image_size, config.data.batch_size = 16, 12
  config.data.threads = 0
  config.data.update(keys)
  return config


def take(n, source, config, **options):
  """The first n training batches."""
  with recipe_data.train_batches(config, source, **options) as batches:
    return [next(batches) for _ in range(n)]


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def write_tfds(root, name, features, splits):
  """A data set as TFDS prepares it, written by TFDS without TensorFlow.

  `name` may be NAME/CONFIG, and `splits` is {split: [example, ...]}.
  """
  from array_record.python import array_record_module
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import example_serializer

  directory = root / name / '1.0.0'
  directory.mkdir(parents=True)
  name, _, config = name.partition('/')
  features = tfds.features.FeaturesDict(features)
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  for split, examples in splits.items():
    file = f'{name}-{split}.array_record-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(
      str(directory / file), 'group_size:1'
    )
    for example in examples:
      encoded = features.encode_example(example)
      writer.write(serializer.serialize_example(encoded))
    writer.close()
  features.save_config(directory)
  info = {
    'name': name,
    **({'configName': config} if config else {}),
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'moduleName': name,
    'splits': [
      {
        'name': split,
        'shardLengths': [str(len(examples))],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, examples in splits.items()
    ],
  }
  (directory / 'dataset_info.json').write_text(json.dumps(info))
