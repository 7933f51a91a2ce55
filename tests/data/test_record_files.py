"""Webdataset tars, TFRecord and Parquet files as inputs of pack."""

import importlib.util
import io
import json
import struct
import tarfile

import pytest

from tests.data.helpers import encode, make_image
from vit_jax.data import pack
from vit_jax.data.record_inputs import split_of
from vit_jax.data.sources.opening import open_source

IMAGES = [encode(make_image(i, 8, 9), 'PNG') for i in range(6)]
needs = lambda module: pytest.mark.skipif(
  importlib.util.find_spec(module) is None, reason=f'{module} is not installed'
)


def write_tar(path, files):
  with tarfile.open(path, 'w') as tar:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def packed(inputs, out, split='train', **options):
  """The classes, and {image: (id, label)} of a packed split."""
  pack.pack(inputs, out, **options)
  source = open_source('packed', split=split, data_dir=str(out))
  examples = {e['image']: (e['id'], e['label']) for e in map(dict, source)}
  return source.class_names or source.num_classes, examples


# --- webdataset -------------------------------------------------------------


def test_webdataset_with_class_files(tmp_path):
  """The splits are in the names of the tars; keys are of each tar alone."""
  for split, first in (('train', 0), ('val', 4)):
    write_tar(
      tmp_path / f'set-{split}-000.tar',
      {
        f'{i}{suffix}': data
        for i in range(first, first + (4 if split == 'train' else 2))
        for suffix, data in (('.png', IMAGES[i]), ('.cls', b'%d\n' % (i % 3)))
      },
    )
  classes, examples = packed(tmp_path, tmp_path / 'out')
  assert classes == 3
  assert examples[IMAGES[2]] == ('set-train-000/2.png', 2)
  test = open_source('packed', split='test', data_dir=str(tmp_path / 'out'))
  assert {e['image']: e['label'] for e in test} == {IMAGES[4]: 1, IMAGES[5]: 2}
  files = sorted(tmp_path.glob('*.tar'))
  alone, again = packed(files[:1], tmp_path / 'one')
  assert (alone, again) == (3, examples)


def test_webdataset_with_json_and_names(tmp_path):
  samples = {
    f'{i}{suffix}': data
    for i in range(3)
    for suffix, data in (
      ('.png', IMAGES[i]),
      ('.json', json.dumps({'label': 'b' if i else 'a', 'w': 1}).encode()),
    )
  }
  tar = write_tar(tmp_path / '0.tar', samples)
  classes, examples = packed(tar, tmp_path / 'out')
  assert classes == ['a', 'b'] and examples[IMAGES[1]] == ('0/1.png', 1)
  classes, examples = packed(
    tar, tmp_path / 'w', label_columns={'label_column': 'w'}
  )
  assert classes == 2 and examples[IMAGES[0]][1] == 1
  with pytest.raises(ValueError, match="json has no field 'x'"):
    pack.pack(tar, tmp_path / 'x', label_columns={'label_column': 'x'})


@pytest.mark.parametrize(
  'files,message',
  [
    ({'0.png': 0, '0.cls': b'1', '1.png': 1}, '1 of 2 images have no .cls'),
    ({'0.png': 0, '0.cls': b' '}, '0.cls is empty'),
    ({'a/0.png': 0, 'a/0.cls': b'1', 'b/1.png': 1}, 'declare --label-column'),
  ],
)
def test_webdataset_refusals(tmp_path, files, message):
  files = {k: IMAGES[v] if isinstance(v, int) else v for k, v in files.items()}
  with pytest.raises(ValueError, match=message):
    pack.pack(write_tar(tmp_path / 'x.tar', files), tmp_path / 'out')


def test_json_beside_images_in_folders_of_classes_is_no_label(tmp_path):
  tar = write_tar(
    tmp_path / 'x.tar',
    {
      'a/0.png': IMAGES[0],
      'a/0.json': b'{"label": "z"}',
      'b/1.png': IMAGES[1],
    },
  )
  classes, _ = packed(tar, tmp_path / 'out')
  assert classes == ['a', 'b']


# --- TFRecord ---------------------------------------------------------------


def write_tfrecords(path, rows, damage=None):
  import google_crc32c
  from tensorflow_datasets.proto import tf_example_pb2

  def checksum(data):
    crc = google_crc32c.value(data)
    return struct.pack(
      '<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )

  text = b''
  for row in rows:
    example = tf_example_pb2.Example()
    for name, value in row.items():
      feature = example.features.feature[name]
      for x in value if isinstance(value, list) else [value]:
        kind = feature.int64_list if isinstance(x, int) else feature.bytes_list
        kind.value.append(x.encode() if isinstance(x, str) else x)
    data = example.SerializeToString()
    head = struct.pack('<Q', len(data))
    text += head + checksum(head) + data + checksum(data)
  path.write_bytes(damage(text) if damage else text)
  return path


@needs('google_crc32c')
def test_tfrecords_of_tensorflow_datasets(tmp_path):
  for split, rows in (('train', range(4)), ('test', range(4, 6))):
    write_tfrecords(
      tmp_path / f'set-{split}.tfrecord-00000-of-00001',
      [
        {'image': IMAGES[i], 'label': i % 2, 'file_name': f'{i}.png'}
        for i in rows
      ],
    )
  (tmp_path / 'label.labels.txt').write_text('zebra\nape\n')
  classes, examples = packed(tmp_path, tmp_path / 'out')
  assert classes == ['zebra', 'ape'] and len(examples) == 4
  assert examples[IMAGES[3]] == ('3.png', 1)
  one = sorted(tmp_path.glob('set-train*'))
  assert packed(one, tmp_path / 'one') == (classes, examples)


@needs('google_crc32c')
def test_tfrecords_with_other_fields(tmp_path):
  rows = [
    {
      'image/encoded': IMAGES[i],
      'image/class/label': i,
      'image/class/synset': s,
    }
    for i, s in ((1, 'n2'), (2, 'n1'))
  ]
  path = write_tfrecords(tmp_path / 'train-00000-of-00001', rows)
  classes, examples = packed(path, tmp_path / 'out')
  assert classes == ['n1', 'n2']
  assert examples[IMAGES[1]] == ('train-00000-of-00001/00000000', 1)
  declared = {'label_column': 'image/class/label'}
  assert packed(path, tmp_path / 'n', label_columns=declared)[0] == 3


@needs('google_crc32c')
@pytest.mark.parametrize(
  'rows,damage,message',
  [
    ([0], lambda data: data[:-1], 'cut short'),
    ([0], lambda data: data[:-9] + b'x' + data[-8:], 'is damaged'),
    ([0], lambda data: b'y' + data[1:], 'damaged at byte 0'),
    ([0], lambda data: b'\x1f\x8b' + data, 'Decompress it'),
    ([0], lambda data: data + data[:5], 'cut short'),
    ([{'image': [b'x', b'y'], 'label': 1}], None, 'has no image'),
    ([{'image': IMAGES[0], 'foo': 1}], None, 'which of the fields foo, image'),
    ([{'label': 1}], None, 'has the image'),
  ],
)
def test_tfrecord_refusals(tmp_path, rows, damage, message):
  rows = [{'image': IMAGES[0], 'label': 1} if r == 0 else r for r in rows]
  path = write_tfrecords(tmp_path / 'x.tfrecord', rows, damage)
  with pytest.raises(ValueError, match=message):
    pack.pack(path, tmp_path / 'out')


# --- Parquet ----------------------------------------------------------------


def write_parquet(path, images, labels, names=None):
  import pyarrow as pa
  from pyarrow import parquet

  table = pa.table({'image': images, 'label': labels})
  if names:
    feature = {'names': names, '_type': 'ClassLabel'}
    info = {'info': {'features': {'label': feature}}}
    table = table.replace_schema_metadata({'huggingface': json.dumps(info)})
  parquet.write_table(table, path, row_group_size=2)
  return path


@needs('pyarrow')
def test_parquet_of_hugging_face(tmp_path):
  (tmp_path / 'in').mkdir()
  cell = lambda i: {'bytes': IMAGES[i], 'path': f'{i}.png'}
  names = ['zebra', 'ape', 'none']
  for split, rows in (('train', range(4)), ('validation', (4, 5))):
    write_parquet(
      tmp_path / 'in' / f'{split}-00000-of-00001.parquet',
      [cell(i) for i in rows],
      [i % 2 for i in rows],
      names,
    )
  classes, examples = packed(tmp_path / 'in', tmp_path / 'out')
  assert classes == names and examples[IMAGES[3]] == ('3.png', 1)
  assert not list((tmp_path / 'out').glob('.*'))  # no copy is left
  test = open_source('packed', split='test', data_dir=str(tmp_path / 'out'))
  assert test.class_names == names and len(test) == 2


@needs('pyarrow')
def test_parquet_without_names(tmp_path):
  path = write_parquet(
    tmp_path / 'x.parquet', [*IMAGES[:3], None], ['b', 'a', 'b', 'a']
  )
  classes, examples = packed(path, tmp_path / 'out')
  assert classes == ['a', 'b']
  assert examples[IMAGES[0]] == ('x.parquet/00000000', 1)
  bad = (tmp_path / 'out' / 'train.bad.jsonl').read_text()
  assert json.loads(bad)['id'] == 'x.parquet/00000003'


@needs('pyarrow')
def test_parquet_refusals(tmp_path):
  hidden = write_parquet(
    tmp_path / 'test.parquet', IMAGES[:1], [-1], ['cat', 'dog']
  )
  with pytest.raises(ValueError, match='the label -1 is none of the 2 classes'):
    pack.pack(hidden, tmp_path / 'out')
  paths = write_parquet(
    tmp_path / 'p.parquet', [{'bytes': None, 'path': 'x.png'}], [0]
  )
  with pytest.raises(ValueError, match="has the path 'x.png' and no image"):
    pack.pack(paths, tmp_path / 'out')
  (tmp_path / 'bad.parquet').write_bytes(b'PAR1 no table PAR1')
  with pytest.raises(ValueError, match='bad.parquet: '):
    pack.pack(tmp_path / 'bad.parquet', tmp_path / 'out')
  assert not [p for p in (tmp_path / 'out').iterdir()]


def test_splits_of_names():
  for name, split in (
    ('train-00000-of-00002.parquet', 'train'),
    ('data/test/0.parquet', 'test'),
    ('imagenet2012-validation.tfrecord-00000-of-00064', 'validation'),
    ('trainer/x.parquet', ''),
    ('training/val-0.tar', 'val'),
  ):
    assert split_of(name) == split
