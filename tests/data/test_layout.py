"""Folders and tars: what is read, what is counted, which splits and classes."""

import os
import pathlib
import socket
import tarfile
import unicodedata

import pytest

from tests.data.helpers import encode, make_image, write_images
from vit_jax.data import pack
from vit_jax.data.decode import missing_plugin
from vit_jax.data.sources.opening import open_source

PNG = encode(make_image(0), 'PNG')


def write(root, *names):
  """Files root/NAME with the bytes of an image."""
  for name in names:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(PNG)
  return root


def to_tar(folder, path):
  with tarfile.open(path, 'w') as tar:
    tar.add(folder, '.')
  return path


def read(root, split='train', **options):
  options = {'holdout': 0.0, **options}
  return open_source('folder', split=split, data_dir=str(root), **options)


def packed(inputs, out, **options):
  """{split: sorted (class, file name)} of a packed folder or tar."""
  result = {}
  for split in pack.pack(inputs, out, **options):
    source = open_source('packed', split=split, data_dir=str(out))
    names = source.class_names
    result[split] = sorted(
      (names[source[i]['label']], source[i]['id'].rpartition('/')[2])
      for i in range(len(source))
    )
  return result


# --- Nothing disappears -----------------------------------------------------


def test_other_formats_are_read_and_the_rest_is_counted(tmp_path):
  suffixes = ('.bmp', '.gif', '.tif', '.TIFF', '.jfif', '.jpe', '.webp')
  write(tmp_path, *(f'rose/{i}{s}' for i, s in enumerate(suffixes)))
  write(tmp_path, 'tulip/sub/deeper/x.png', 'tulip/y.png', 'rose/a.heic')
  (tmp_path / 'rose' / 'notes.txt').write_text('text')
  (tmp_path / 'rose' / 'README').write_text('text')
  (tmp_path / 'moss').mkdir()
  source = read(tmp_path)
  assert len(source) == len(suffixes) + 2
  assert source.class_names == ['rose', 'tulip']
  heic = '.heic (install pillow-heif)' if missing_plugin('.heic') else ''
  text = source.summary.removeprefix(f'{tmp_path}: ')
  assert text.startswith('9 images of 2 classes; 1 of them in folders below')
  for words in (heic, '1 .txt', '1 without a suffix', 'class "moss" is empty'):
    assert words in text, text


def test_the_summary_is_said_once(tmp_path, caplog):
  write(tmp_path, 'a/x.png', 'b/x.png', 'b/x.txt')
  for _ in range(2):
    read(tmp_path)
  assert caplog.text.count('2 images of 2 classes; skipped: 1 .txt') == 1


def test_hidden_and_special_files_are_never_opened(tmp_path):
  write(tmp_path, 'a/x.png', 'b/y.png', '.ipynb_checkpoints/z.png')
  write(tmp_path, 'a/.ipynb_checkpoints/x.png', 'a/._x.png', '__MACOSX/a/x.png')
  write(tmp_path, 'a/folder.jpg/z.png')
  os.mkfifo(tmp_path / 'a' / 'pipe.png')
  (tmp_path / 'b' / 'lost.png').symlink_to('nowhere.png')
  (tmp_path / 'b' / 'link.png').symlink_to('y.png')
  (tmp_path / 'b' / 'up').symlink_to(tmp_path)
  server = socket.socket(socket.AF_UNIX)
  here = os.getcwd()
  os.chdir(tmp_path / 'a')  # the path of a socket is short
  server.bind('socket.png')
  os.chdir(here)
  source = read(tmp_path)
  server.close()
  assert sorted(source[i]['id'] for i in range(len(source))) == [
    'a/folder.jpg/z.png',
    'a/x.png',
    'b/link.png',
    'b/y.png',
  ]
  for words in (
    '4 hidden',
    '1 named pipe',
    '1 socket',
    '1 broken link',
    '1 link to a folder that holds it',
  ):
    assert words in source.summary, source.summary


def test_a_named_pipe_as_an_example_is_a_bad_image(tmp_path):
  write(tmp_path, 'a/x.png', 'b/y.png')
  source = read(tmp_path)
  os.remove(tmp_path / 'a' / 'x.png')
  os.mkfifo(tmp_path / 'a' / 'x.png')
  i = [source.describe(i) for i in range(2)].index(f'{tmp_path}/a/x.png')
  with pytest.raises(OSError, match='a named pipe, not a regular file'):
    source[i]


def test_names_that_are_not_utf_8(tmp_path):
  root = os.fsencode(tmp_path / 'in')
  for c in (b'caf\xe9', b'b'):
    os.makedirs(os.path.join(root, c))
    for name in (b'\xff\xfe.png', b'x.png'):
      with open(os.path.join(root, c, name), 'wb') as file:
        file.write(PNG)
  source = read(tmp_path / 'in')
  assert source.class_names == ['b', 'caf\\xe9'] and len(source) == 4
  assert {source[i]['image'] for i in range(4)} == {PNG}
  ids = sorted(source[i]['id'] for i in range(4))
  assert ids[-1].encode() and ids[0] == 'b/\\xff\\xfe.png'
  from_folder = packed(tmp_path / 'in', tmp_path / 'out')
  tar = to_tar(tmp_path / 'in', tmp_path / 'in.tar')
  assert packed(tar, tmp_path / 'tar') == from_folder
  assert ('caf\\xe9', '\\xff\\xfe.png') in from_folder['train']


@pytest.mark.parametrize(
  'names,says',
  [
    (('fold1/a/1.png', 'fold2/a/1.png'), '"a" in "fold1"'),
    (('train_images/a/1.png', 'val_images/b/1.png'), '"a" in "train_images"'),
    (('train/train/a/1.png', 'train/train/b/2.png'), '"a" in "train"'),
    (('images/a/1.png', 'images/b/1.png', 'notes/x.txt'), '"a" in "images"'),
  ],
)
def test_classes_that_have_only_folders_are_said(tmp_path, names, says, caplog):
  """They may be no classes but a part of the data, or a folder around it."""
  write(tmp_path / 'in', *names)
  source = read(tmp_path / 'in')
  assert (
    f'all of them are in folders below the folder of their class, such as '
    f'{says}: if those are the classes, move them up' in source.summary
  )
  assert source.summary in caplog.text  # a warning


def test_a_tar_needs_no_entries_for_its_folders(tmp_path):
  """Folders without images count, whether the tar has entries for them."""
  root = write(tmp_path / 'in', 'images/a/1.png', 'images/b/2.png')
  write(root, 'notes/x.txt')
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    for path in sorted(root.rglob('*.*')):
      tar.add(path, path.relative_to(root))
  from_tar, folder = read(tmp_path / 'x.tar'), read(root)
  assert from_tar.class_names == folder.class_names == ['images']
  assert (
    from_tar.summary.partition(': ')[2] == folder.summary.partition(': ')[2]
  )
  assert from_tar.fingerprint == folder.fingerprint


@pytest.mark.parametrize(
  'name,data,says',
  [
    ('x.zip', b'PK\3\4' + bytes(600), 'a zip archive.*unpack it'),
    ('x.tar.gz', b'\x1f\x8b' + bytes(600), 'by gzip.*unpack it'),
    ('x.tar', b'\x1f\x8b' + bytes(600), 'by gzip.*unpack it'),
    ('x.tar.xz', b'\xfd7zXZ' + bytes(600), 'by xz.*unpack it'),
    ('x.7z', b"7z\xbc\xaf'" + bytes(600), 'a 7z archive.*unpack it'),
    ('x.txt', b'text' * 200, 'neither a folder nor a tar|is a file, not a dir'),
  ],
)
def test_other_archives_are_named(tmp_path, name, data, says):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=says):
    read(tmp_path / name)
  with pytest.raises(ValueError, match=says):
    pack.pack(tmp_path / name, tmp_path / 'out')


# --- Unicode ----------------------------------------------------------------


def test_both_forms_of_unicode_are_one_name(tmp_path):
  nfc, nfd = (unicodedata.normalize(f, 'café') for f in ('NFC', 'NFD'))
  assert nfc != nfd
  write(tmp_path, f'train/{nfc}/x.png', 'train/tea/x.png', f'test/{nfd}/y.png')
  write(tmp_path, f'train/{nfd}/z.png')
  source, test = read(tmp_path), read(tmp_path, 'test')
  assert source.class_names == [nfc, 'tea'] and len(source) == 3
  assert test.class_names == [nfc, 'tea'] and test[0]['label'] == 0
  out = tmp_path / 'out'
  assert packed(tmp_path, out)['train'] == [
    (nfc, 'x.png'),
    (nfc, 'z.png'),
    ('tea', 'x.png'),
  ]


# --- Splits -----------------------------------------------------------------


@pytest.mark.parametrize(
  'train,test',
  [
    ('train', 'valid'),
    ('Train', 'Test'),
    ('training', 'testing'),
    ('TRAIN', 'val'),
    ('Training', 'Validation'),
  ],
)
def test_names_of_splits(tmp_path, train, test):
  write(tmp_path, f'{train}/a/1.png', f'{train}/b/2.png', f'{test}/b/3.png')
  source, held_out = read(tmp_path), read(tmp_path, 'test')
  assert len(source) == 2 and len(held_out) == 1
  assert held_out.class_names == ['a', 'b'] and held_out[0]['label'] == 1
  splits = packed(tmp_path, tmp_path / 'out')
  assert splits['train'] == [('a', '1.png'), ('b', '2.png')]
  assert len(splits) == 2
  source = open_source('packed', split='test', data_dir=str(tmp_path / 'out'))
  assert source[0]['label'] == 1


def test_a_class_called_train(tmp_path):
  # Images directly in it, and a sibling that is no split: a class.
  write(tmp_path / 'flat', 'train/1.png', 'bus/2.png', 'test/3.png')
  assert read(tmp_path / 'flat').class_names == ['bus', 'test', 'train']
  # Folders in it: two readings, and `flat` decides.
  write(tmp_path / 'deep', 'train/day/1.png', 'bus/day/2.png')
  assert read(tmp_path / 'deep').class_names == ['day']
  assert '1 in "bus", which is no split' in read(tmp_path / 'deep').summary
  for root in ('flat', 'deep'):
    flat = read(tmp_path / root, flat=True)
    assert {'bus', 'train'} <= set(flat.class_names)
  write(tmp_path / 'only', 'train/1.png', 'test/2.png')
  with pytest.raises(ValueError, match='no class directories.*data.flat=True'):
    read(tmp_path / 'only')
  assert read(tmp_path / 'only', flat=True).class_names == ['test', 'train']


@pytest.mark.parametrize(
  'names,message',
  [
    (('train/a/1.png', 'Train/a/2.png'), "both the split 'train'"),
    (('val/a/1.png', 'val/b/1.png'), 'no train directory'),
    (('x.png', 'y.png'), 'no class directories'),
    (('a/train/1.png', 'b/test/2.png'), 'within the folders of classes'),
  ],
)
def test_folders_and_tars_give_the_same_error(tmp_path, names, message):
  write(tmp_path / 'in', *names)
  with pytest.raises(ValueError, match=message):
    read(tmp_path / 'in')
  with pytest.raises(ValueError, match=message):
    pack.pack(tmp_path / 'in', tmp_path / 'out')
  if 'x.png' in names:
    message = 'of one class'  # the name of the tar is the class
  with pytest.raises(ValueError, match=message):
    pack.pack(to_tar(tmp_path / 'in', tmp_path / 'in.tar'), tmp_path / 'out')


# --- Tars -------------------------------------------------------------------


def test_a_tar_is_the_folder_that_it_was_made_from(tmp_path):
  root = tmp_path / 'in'
  write(root, 'train/a/1.png', 'train/a/sub/2.png', 'train/b/3.png')
  write(root, 'test/a/4.png', 'test/b/.hidden/5.png', 'extra/6.png')
  (root / 'train' / 'b' / 'link.png').symlink_to('3.png')
  os.link(root / 'train' / 'a' / '1.png', root / 'train' / 'b' / 'hard.png')
  want = packed(root, tmp_path / 'out')
  assert want == {
    'train': [
      ('a', '1.png'),
      ('a', '2.png'),
      ('b', '3.png'),
      ('b', 'hard.png'),
      ('b', 'link.png'),
    ],
    'test': [('a', '4.png')],
  }
  assert packed(to_tar(root, tmp_path / 'in.tar'), tmp_path / 't') == want
  # With a folder around everything, as `tar cf x.tar folder` makes it.
  with tarfile.open(tmp_path / 'wrapped.tar', 'w') as tar:
    tar.add(root, 'data/set')
  assert packed(tmp_path / 'wrapped.tar', tmp_path / 'w') == want


def test_hostile_tars(tmp_path):
  tar = to_tar(write(tmp_path / 'in', 'a/1.png', 'b/2.png'), tmp_path / 'x.tar')
  data = bytearray(tar.read_bytes())
  for i in range(6):  # each tar is in the one after it
    inner = tmp_path / f'{i}.tar'
    inner.write_bytes(data)
    with tarfile.open(tmp_path / 'next', 'w') as outer:
      outer.add(inner, f'{i}.tar')
    data = bytearray((tmp_path / 'next').read_bytes())
  (tmp_path / 'deep.tar').write_bytes(data)
  with pytest.raises(ValueError, match='within more than 3 others'):
    pack.pack(tmp_path / 'deep.tar', tmp_path / 'out')
  whole = tar.read_bytes()
  broken = bytearray(whole)
  broken[-broken[::-1].index(b'2.png'[::-1]) - 1] ^= 1  # in the last header
  for data in (whole[:1600], whole[:5000], whole[:6500], broken):
    (tmp_path / 'cut.tar').write_bytes(data)
    with pytest.raises(ValueError, match='cut short|past the end|broken tar'):
      pack.pack(tmp_path / 'cut.tar', tmp_path / 'out')
  huge = tarfile.TarInfo('a/1.png')
  huge.size = 8**11 - 1
  with open(tmp_path / 'huge.tar', 'wb') as file:
    file.write(huge.tobuf() + bytes(2048))
  with pytest.raises(ValueError, match='past the end|broken tar'):
    pack.pack(tmp_path / 'huge.tar', tmp_path / 'out')


def test_members_that_leave_a_tar_are_counted(tmp_path, caplog):
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    write(tmp_path / 'in', '1.png')
    for name in ('a/1.png', 'b/1.png', '../c/1.png'):
      tar.add(tmp_path / 'in' / '1.png', name)
  packed(tmp_path / 'x.tar', tmp_path / 'out')
  assert '1 with a path that leaves the tar' in caplog.text


def test_linked_folders_are_classes_in_folder_and_tar(tmp_path):
  root = write(tmp_path / 'in', 'a/1.png', 'a/sub/2.png')
  (root / 'b').symlink_to('a')
  (root / 'a' / 'up').symlink_to('..')
  want = packed(root, tmp_path / 'out')
  assert want['train'] == [(c, f'{i}.png') for c in 'ab' for i in (1, 2)]
  assert packed(to_tar(root, tmp_path / 'x.tar'), tmp_path / 'tar') == want


# --- Splits of images whose labels are in a file ----------------------------


def pack_labeled(tmp_path, names, **options):
  write(tmp_path / 'in', *names)
  (tmp_path / 'labels.csv').write_text(
    ''.join(f'{name},c\n' for name in options.pop('entries', names))
  )
  result = packed(
    tmp_path / 'in',
    tmp_path / 'out',
    labels_file=tmp_path / 'labels.csv',
    **options,
  )
  return {split: [x for _, x in group] for split, group in result.items()}


def test_splits_with_a_file_of_labels(tmp_path):
  names = ('data/Train/1.png', 'data/Test/2.png')
  want = {'train': ['1.png'], 'test': ['2.png']}
  assert pack_labeled(tmp_path / 'in_a_folder', names) == want
  entries = ('1.png', '2.png')
  assert pack_labeled(tmp_path / 'short', names, entries=entries) == want
  assert pack_labeled(tmp_path / 'one', names, split='test') == {
    'test': ['2.png']
  }
  assert pack_labeled(tmp_path / 'flat', names, flat=True) == {
    'train': ['1.png', '2.png']
  }


@pytest.mark.parametrize(
  'names,entries,message',
  [
    (('train/1.png', 'x/2.png', 'test/3.png'), None, 'and x beside them'),
    (('train/1.png', '2.png'), None, 'and images beside them'),
    (('val/1.png',), None, 'val but no train'),
    (('train/1.png', 'Train/2.png'), None, "both the split 'train'"),
    (
      ('train/1.png', 'test/1.png'),
      ('1.png',),
      "one entry, '1.png', for several images: train/1.png and test/1.png",
    ),
  ],
)
def test_splits_that_would_be_mixed(tmp_path, names, entries, message):
  with pytest.raises(ValueError, match=message):
    pack_labeled(tmp_path, names, entries=entries or names)


def test_inputs_that_overlap_are_refused(tmp_path):
  root = write(tmp_path, 'a/1.png', 'b/2.png', 'b/x/3.png')
  for inputs in ((root, root), (root, root / 'b')):
    with pytest.raises(ValueError, match='two of the inputs|no class direct'):
      pack.pack(inputs, tmp_path / 'out')


# --- Orientation ------------------------------------------------------------


def test_shrinking_keeps_the_orientation(tmp_path):
  from PIL import Image

  from vit_jax.data.decode import Decoding, decode

  exif = Image.Exif()
  exif[0x112] = 6
  (tmp_path / 'in' / 'a').mkdir(parents=True)
  path = tmp_path / 'in' / 'a' / 'x.jpg'
  path.write_bytes(encode(make_image(0, 40, 80), exif=exif))
  meta = pack.pack(tmp_path / 'in', tmp_path / 'out', short_side=20)['train']
  assert meta['image_shape'] is None  # the size depends on the reader
  source = open_source('packed', split='train', data_dir=str(tmp_path / 'out'))
  data = source[0]['image']
  assert decode(data).shape == (40, 20, 3)
  assert decode(data, Decoding(upright=False)).shape == (20, 40, 3)


def test_the_fingerprint_is_that_of_names_and_sizes(tmp_path):
  root = write_images(tmp_path / 'one', {'a': 3, 'b': 3})
  one = read(root)
  other = tmp_path / 'two'
  root.rename(other)
  assert read(other).fingerprint == one.fingerprint
  path = pathlib.Path(other / 'a' / '0.jpg')
  path.write_bytes(path.read_bytes() + b'\0')
  changed = read(other)
  assert len(changed) == len(one)
  assert changed.fingerprint != one.fingerprint
  assert changed.has_fingerprint(one.earlier_fingerprint())  # paths only
  path.rename(other / 'a' / 'new.jpg')
  assert read(other).fingerprint != changed.fingerprint
  assert not read(other).has_fingerprint(one.earlier_fingerprint())
