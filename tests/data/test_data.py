"""Sources, packing, transforms and the order of batches."""

import io
import json
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest

from vit_jax.data import loader, pack, records, transforms
from vit_jax.data.prefetch import prefetch
from vit_jax.data.sources.opening import open_source
from vit_jax.recipe.keys import default_config


def make_image(seed, height=20, width=24):
  """A smooth random image: JPEG keeps it."""
  small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((width, height)))


def encode(array, kind='JPEG', **options):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, kind, **options)
  return buffer.getvalue()


def write_images(root, per_class, suffix='.jpg'):
  """{class: count} as files root/class/i.jpg."""
  for c, (name, count) in enumerate(per_class.items()):
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}{suffix}').write_bytes(
        encode(make_image(100 * c + i))
      )
  return root


def data_config(**keys):
  cfg = default_config().data
  cfg.image_size, cfg.batch_size, cfg.threads = 16, 12, 0
  cfg.update(keys)
  return cfg


def take(n, source, cfg, **options):
  with loader.train_batches(source, cfg, seed=3, **options) as batches:
    return [next(batches) for _ in range(n)]


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope='module')
def digits():
  return open_source('digits', split='train')


# --- Sources ----------------------------------------------------------------


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
  parts = [
    open_source('digits', split=s) for s in ('train[:33%]', 'train[33%:]')
  ]
  ids = [p[i]['id'] for p in parts for i in range(len(p))]
  assert ids == [digits[i]['id'] for i in range(len(digits))]
  assert parts[0].fingerprint != parts[1].fingerprint


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
    'synthetic', split=split, num_examples=20, num_classes=3, image_size=9
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
  image = transforms.decode(train[0]['image'])
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
  with pytest.raises(ValueError, match="file_format='array_record'"):
    open_source('tfds:mnist', split='train', data_dir=str(tmp_path))


# --- TFDS -------------------------------------------------------------------


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  """A data set as TFDS prepares it, written by TFDS without TensorFlow."""
  import tensorflow_datasets as tfds

  root = tmp_path_factory.mktemp('tfds')
  directory = root / 'tiny' / '1.0.0'
  directory.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(20, 24, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=['no', 'yes']),
      'file_name': tfds.features.Text(),
    }
  )
  from array_record.python import array_record_module
  from tensorflow_datasets.core import example_serializer

  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  splits = []
  for split, n in (('train', 10), ('validation', 4)):
    name = f'tiny-{split}.array_record-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(
      str(directory / name), 'group_size:1'
    )
    for i in range(n):
      writer.write(
        serializer.serialize_example(
          features.encode_example(
            {
              'image': io.BytesIO(encode(make_image(i), 'PNG')),
              'label': i % 2,
              'file_name': f'{i}.png',
            }
          )
        )
      )
    writer.close()
    splits.append(
      {
        'name': split,
        'shardLengths': [str(n)],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
    )
  features.save_config(directory)
  (directory / 'dataset_info.json').write_text(
    json.dumps(
      {
        'name': 'tiny',
        'version': '1.0.0',
        'fileFormat': 'array_record',
        'moduleName': 'tiny',
        'splits': splits,
      }
    )
  )
  return root


def test_tfds(tfds_dir):
  source = open_source('tfds:tiny', split='train[:80%]', data_dir=str(tfds_dir))
  assert len(source) == 8 and source.class_names == ['no', 'yes']
  assert source.image_shape == (20, 24)
  example = source[3]
  assert isinstance(example['image'], bytes) and example['label'] == 1
  assert example['id'] == '3.png'
  np.testing.assert_array_equal(
    transforms.decode(example['image']), make_image(3)
  )
  images, labels = source.arrays()
  np.testing.assert_array_equal(images[5], make_image(5))
  assert labels.tolist() == [0, 1] * 4
  # What is asked for as 'test' is called 'validation' there.
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
from vit_jax import config
from vit_jax.data import pipeline, sources
source = sources.open_source('tfds:tiny', split='train',
                             data_dir={str(tfds_dir)!r})
cfg = config.default_config().data
cfg.image_size, cfg.batch_size = 16, 4
with pipeline.train_batches(source, cfg, seed=0) as batches:
  assert next(batches)['image'].shape == (4, 16, 16, 3)
print('tensorflow' in sys.modules, 'torch' in sys.modules,
      'matplotlib' in sys.modules)
"""
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.split() == ['False'] * 3


# --- Packing ----------------------------------------------------------------


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
  for e in examples:  # the very bytes, under their labels
    assert e['image'] == (tmp_path / 'in' / 'train' / e['id']).read_bytes()
    assert source.class_names[e['label']] == e['id'][0]
  names = [e['id'] for e in examples]
  assert names != sorted(names) and len(set(names)) == 11
  _, test = read_all(tmp_path / 'out', 'test')
  assert [e['label'] for e in test] == [1, 1, 1]  # train's class numbers
  assert len(list((tmp_path / 'out').glob('train-*-of-00003.*'))) == 3
  assert not list((tmp_path / 'out').glob('*.tmp'))
  # Same inputs, same data; another seed, another order.
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
      transforms.decode(e['image'])


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
  batch = take(1, source, data_config(batch_size=4))[0]
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
  assert transforms.decode(by_name['b/l.jpg']).shape == (40, 30, 3)
  assert source.image_shape is None


def test_pack_refuses(tmp_path):
  one = write_tar(tmp_path / 'one.tar', {'x.jpg': encode(make_image(0))})
  zipped = write_tar(tmp_path / 'z.tar.gz', {'a/x.jpg': b''}, 'w:gz')
  folder = write_images(tmp_path / 'in', {'a': 2})
  labels = tmp_path / 'l.json'
  labels.write_text('{"a/0.jpg": 0}')
  for inputs, options, message in (
    (one, {}, 'of one class'),
    (zipped, {}, 'decompress it first'),
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


def test_records():
  for labels in ([], [3], [0, 21842, 7]):
    record = records.encode_record(b'\xff\xd8 data', labels, 'ü/x.jpg')
    assert records.decode_record(record) == (
      b'\xff\xd8 data',
      labels,
      'ü/x.jpg',
    )
  with pytest.raises(ValueError, match='not a record'):
    records.decode_record(b'\x07\x00\x00\x00\x00\x00')
  with pytest.raises(ValueError, match='cut short'):
    records.decode_record(records.encode_record(b'', [1, 2], 'x')[:8])


# --- Transforms -------------------------------------------------------------


@pytest.mark.parametrize(
  'mode,kind,options',
  [
    ('RGB', 'JPEG', {}),
    ('L', 'JPEG', {}),
    ('RGB', 'PNG', {}),
    ('RGB', 'JPEG', {'progressive': True, 'subsampling': 2}),
    ('RGBA', 'PNG', {}),
    ('P', 'PNG', {}),
    ('LA', 'PNG', {}),
    ('1', 'PNG', {}),
    ('RGB', 'WEBP', {}),
    ('I;16', 'PNG', {}),
  ],
)
def test_both_decoders_give_the_same_pixels(mode, kind, options):
  array = make_image(5, 37, 51)
  image = (
    Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    if mode == 'I;16'
    else Image.fromarray(array).convert(mode)
  )
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  np.testing.assert_array_equal(
    transforms.decode(buffer.getvalue()),
    transforms.decode_pillow(buffer.getvalue()),
  )


def test_orientation_is_ignored():
  exif = Image.Exif()
  exif[0x112] = 6  # rotated by 90 degrees
  data = encode(make_image(0), exif=exif)
  assert transforms.decode(data).shape == (20, 24, 3)
  assert transforms.decode_pillow(data).shape == (20, 24, 3)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'not an image',
    encode(make_image(0))[:-40],
    encode(make_image(0), 'PNG')[:-60],
    encode(make_image(0))[:30],
  ],
)
def test_broken_images(data):
  for decode in (transforms.decode, transforms.decode_pillow):
    with pytest.raises(transforms.BadImage):
      decode(data)


@pytest.mark.parametrize('size', [(7, 9), (40, 33), (20, 24), (1, 1)])
def test_bilinear_without_opencv(monkeypatch, size):
  image = make_image(2)
  want = transforms.resize(image, size)
  monkeypatch.setattr(transforms, 'cv2', None)
  got = transforms.resize(image, size)
  assert np.abs(got.astype(int) - want).max() <= 1
  np.testing.assert_array_equal(
    transforms.flip_left_right(image), image[:, ::-1]
  )


@pytest.mark.parametrize(
  'method',
  ['nearest', 'area', 'bilinear', 'bicubic', 'lanczos3', 'mitchellcubic'],
)
@pytest.mark.parametrize('antialias', [False, True])
def test_resize_weights_keep_constants(method, antialias):
  for old, new in ((10, 3), (3, 10), (7, 7), (1, 4)):
    weights = transforms.resize_weights(old, new, method, antialias)
    assert weights.shape == (new, old)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
  if method not in ('mitchellcubic',):  # which blurs on purpose
    np.testing.assert_allclose(
      transforms.resize_weights(7, 7, method, antialias), np.eye(7), atol=1e-6
    )


def test_inception_boxes():
  rng = np.random.default_rng(0)
  areas = []
  for _ in range(500):
    top, left, h, w = transforms.inception_box(
      rng, 300, 400, (0.08, 1.0), (3 / 4, 4 / 3)
    )
    assert 0 <= top <= 300 - h and 0 <= left <= 400 - w
    assert 0.74 < w / h < 1.35
    areas.append(h * w / 120_000)
  assert 0.07 < min(areas) < 0.12 and max(areas) > 0.9
  assert 0.36 < np.mean(areas) < 0.54  # large ones fit more rarely
  # A strip fits no box: the centre, with the aspect ratio at its limit.
  assert transforms.inception_box(rng, 10, 100, (1, 1), (3 / 4, 4 / 3)) == (
    0,
    43,
    10,
    13,
  )
  assert transforms.inception_box(rng, 100, 9, (1, 1), (3 / 4, 4 / 3)) == (
    44,
    0,
    12,
    9,
  )


def test_eval_crop_rounds_as_torchvision():
  # Shorter side 438 = floor(384 / 0.875), longer int(438 * 500 / 375) = 584.
  image = np.zeros((375, 500, 3), np.uint8)
  assert transforms.eval_image(image, (384, 384), 0.875, 'bicubic').shape == (
    384,
    384,
    3,
  )
  assert transforms.short_side(375, 500, 438) == (438, 584)
  assert transforms.short_side(500, 333, 256) == (384, 256)
  # A ramp shows the place of the crop: (256 - 225) / 2 = 15.5 rounds to 16.
  ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)
  ramp = np.repeat(ramp[..., None], 3, 2)
  out = transforms.eval_image(ramp, (225, 225), 225 / 256)
  assert out[0, 0, 0] == 16 and out.shape == (225, 225, 3)


def test_eval_crop_above_one_pads():
  image = np.full((60, 80, 3), 200, np.uint8)
  out = transforms.eval_image(image, (57, 57), 1.15)
  inside = out[..., 0] > 0
  assert inside.sum(0).max() == 49  # floor(57 / 1.15)
  rows = np.flatnonzero(inside.any(1))
  assert (rows[0], rows[-1]) == (4, 52)
  assert inside.any(0).all()  # 65 pixels wide: cut, not padded


def test_eval_rectangle_and_squash():
  image = make_image(1, 60, 80)
  assert transforms.eval_image(image, (24, 40), 0.9).shape == (24, 40, 3)
  np.testing.assert_array_equal(
    transforms.eval_image(image, (24, 40)), transforms.resize(image, (24, 40))
  )
  for crop in ('centre', 0, -1.0, True):
    with pytest.raises(ValueError, match='crop ratio'):
      transforms.check_eval(crop, 'bilinear')


@pytest.mark.parametrize(
  'keys',
  [
    {'crop': 'inception'},
    {'crop': 'inception', 'interpolation': 'bicubic'},
    {'crop': 'inception', 'interpolation': 'random', 'color_jitter': 0.4},
    {'crop': 'resize_crop', 'resize': 20},
    {'crop': 'pad_crop'},
    {'crop': 'squash_crop', 'resize': 20},
    {'crop': 'resize', 'randaugment': 'google(2,15)'},
    {'crop': 'inception', 'randaugment': 'rand-m9-mstd0.5-inc1'},
    {'device_resize': 8},
    {'image_size': 16, 'image_width': 12},
  ],
)
def test_train_transform(keys):
  cfg = data_config(**keys)
  transform = transforms.TrainTransform(cfg)
  size = (8, 8) if cfg.device_resize else (16, cfg.image_width or 16)
  outputs = []
  for seed in (0, 0, 1):
    out, geometry = transform(make_image(4), np.random.default_rng(seed))
    assert out.shape == (*size, 3) and out.dtype == np.uint8
    assert len(geometry.box) == 4
    outputs.append(out)
  np.testing.assert_array_equal(outputs[0], outputs[1])


def test_geometry_describes_the_crop():
  cfg = data_config(crop='inception', area=(0.2, 0.6), image_size=64)
  transform = transforms.TrainTransform(cfg)
  ramp = np.zeros((100, 100, 3), np.uint8)
  ramp[..., 0] = np.arange(100)[:, None] * 2
  ramp[..., 1] = np.arange(100) * 2
  flips = set()
  for seed in range(12):
    out, geometry = transform(ramp, np.random.default_rng(seed))
    top, left, h, w = geometry.box
    centre = out[31:33, 31:33].mean((0, 1))
    np.testing.assert_allclose(
      centre[:2] / 200, [top + h / 2 - 0.005, left + w / 2 - 0.005], atol=0.015
    )
    assert (out[0, 0, 1] > out[0, -1, 1]) == geometry.flip
    flips.add(bool(geometry.flip))
  assert flips == {False, True}


@pytest.mark.parametrize(
  'keys,message',
  [
    ({'crop': 'random'}, 'data.crop=.random.: must be one of inception'),
    ({'interpolation': 'cubic'}, 'data.interpolation'),
    ({'area': (0.5, 0.1)}, 'data.area'),
    ({'aspect': (2.0, 1.0)}, 'aspect'),
    ({'crop': 'resize_crop'}, 'needs data.resize'),
    ({'crop': 'resize_crop', 'resize': 8}, 'at least 16'),
    ({'randaugment': 'randaug'}, 'data.randaugment takes'),
    ({'repeats': 0}, 'data.repeats=0'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'threads': -1}, 'data.threads=-1'),
  ],
)
def test_bad_data_keys(digits, keys, message):
  with pytest.raises(ValueError, match=message):
    loader.train_batches(digits, data_config(**keys), seed=0)


# --- Batches ----------------------------------------------------------------


def test_a_run_resumes_at_its_step(digits):
  cfg = data_config(batch_size=100)  # an epoch is 14.37 batches
  every = take(18, digits, cfg)
  for start in (1, 14, 17):
    assert_same(take(18 - start, digits, cfg, start_step=start), every[start:])
  index = np.concatenate([b['index'] for b in every])
  assert len(set(index[:1437])) == 1437  # batches run across the epochs
  assert not np.array_equal(index[:300], index[1437:1737])
  _, labels = digits.arrays()
  for b in every:
    np.testing.assert_array_equal(b['label'], labels[b['index']])
  other = loader.train_batches(digits, cfg, seed=4)
  assert not np.array_equal(next(other)['index'], every[0]['index'])


@pytest.mark.parametrize(
  'keys', [{}, {'repeats': 3}, {'randaugment': 'google(2,10)'}]
)
def test_global_batches_do_not_depend_on_the_processes(digits, keys):
  cfg = data_config(**keys)
  whole = take(4, digits, cfg)
  for count in (2, 4):
    parts = [
      take(4, digits, cfg, process_index=p, process_count=count)
      for p in range(count)
    ]
    joined = [
      {k: np.concatenate([p[step][k] for p in parts]) for k in whole[0]}
      for step in range(4)
    ]
    assert_same(joined, whole)
  with pytest.raises(ValueError, match='multiple of the number of processes'):
    take(1, digits, cfg, process_count=5)


def test_threads_do_not_change_the_stream(tmp_path):
  write_images(tmp_path, {'a': 10, 'b': 10})
  source = open_source('folder', split='train', data_dir=str(tmp_path))
  want = take(4, source, data_config(threads=0))
  assert_same(take(4, source, data_config(threads=4)), want)


def test_processes_of_workers_do_not_change_the_stream(tmp_path):
  write_images(tmp_path / 'in', {'a': 10, 'b': 10})
  pack.pack(tmp_path / 'in', tmp_path / 'out')
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  want = take(5, source, data_config(threads=0))
  assert_same(take(5, source, data_config(threads=1, workers=2)), want)


def test_repeated_augmentation(digits):
  cfg = data_config(repeats=3, batch_size=30, area=(0.3, 0.6))
  batches = take(3, digits, cfg)
  index = np.concatenate([b['index'] for b in batches]).reshape(-1, 3)
  assert (index == index[:, :1]).all()
  assert len(set(index[:, 0])) == 30
  images = batches[0]['image'].reshape(10, 3, 16, 16, 3)
  assert all(not np.array_equal(i[0], i[1]) for i in images)
  plain = take(1, digits, data_config(batch_size=30))[0]['index']
  np.testing.assert_array_equal(index[:, 0], plain)


def test_geometry_and_token_labels(digits):
  seen = []

  def labels(index, geometry):
    seen.append(geometry)
    return np.full((2, 2), index, np.int32)

  batch = take(1, digits, data_config(), geometry=True, token_labels=labels)[0]
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
        batch_size=batch,
        image_size=8,
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


# --- Corrupt images ---------------------------------------------------------


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
  cfg = data_config(max_bad_fraction=0.1, batch_size=10)
  with loader.train_batches(damaged, cfg, seed=3) as batches:
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
    take(
      4, damaged, data_config(max_bad_fraction=0.1, batch_size=10, threads=3)
    ),
    epoch,
  )


def test_too_many_corrupt_images_stop_the_run(damaged):
  with loader.train_batches(
    damaged, data_config(max_bad_fraction=0.05), seed=3
  ) as batches:
    with pytest.raises(loader.TooManyBadImages) as stop:
      for _ in range(8):
        next(batches)
  message = str(stop.value)
  assert '3 of 40' in message and 'data.max_bad_fraction=0.05' in message
  assert all(damaged.describe(i) in message for i in (4, 5, 30))


def test_corrupt_images_are_masked_in_evaluation(damaged):
  batches = loader.eval_batches(
    damaged, batch_size=16, image_size=16, threads=0, max_bad_fraction=0.1
  )
  total = sum(b['mask'].sum() for b in batches)
  assert total == 37 and len(batches.bad) == 3
  with pytest.raises(loader.TooManyBadImages):
    list(loader.eval_batches(damaged, batch_size=16, image_size=16, threads=0))


def test_all_images_corrupt(tmp_path):
  write_images(tmp_path, {'a': 3})
  for path in (tmp_path / 'a').iterdir():
    path.write_bytes(b'x')
  source = open_source(
    'folder', split='train', holdout=0.0, data_dir=str(tmp_path)
  )
  with pytest.raises(loader.TooManyBadImages, match='in a row'):
    take(1, source, data_config(max_bad_fraction=1.0))


# --- Prefetch ---------------------------------------------------------------


@pytest.mark.parametrize('size', [0, 1, 3])
def test_prefetch(size):
  with prefetch(range(7), lambda x: x * 2, size) as ahead:
    assert list(ahead) == [0, 2, 4, 6, 8, 10, 12]
    assert list(ahead) == []


@pytest.mark.parametrize('size', [0, 2])
def test_prefetch_raises_in_its_place(size):
  def broken():
    yield 1
    raise OSError('the disk is gone')

  ahead = prefetch(broken(), size=size)
  assert next(ahead) == 1
  for _ in range(2):  # and stays so
    with pytest.raises(OSError, match='the disk is gone'):
      next(ahead)
  ahead.close()
  refused = prefetch([1], lambda x: 1 / 0, size)
  with pytest.raises(ZeroDivisionError):
    next(refused)
  refused.close()


def test_prefetch_closes_while_full():
  class Endless:
    made, closed = 0, False

    def __iter__(self):
      return self

    def __next__(self):
      self.made += 1
      return self.made

    def close(self):
      self.closed = True

  endless = Endless()
  ahead = prefetch(endless, size=2)
  assert next(ahead) == 1
  ahead.close()
  assert endless.closed and endless.made <= 6
  assert not ahead._thread.is_alive()
  with pytest.raises(StopIteration):
    next(ahead)
