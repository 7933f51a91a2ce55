"""Tars and labels that are made to hang, to crash or to take all memory."""

import io
import json
import tarfile

import pytest

from tests.data.helpers import encode, make_image, write_images
from vit_jax.data import labels, listing, pack
from vit_jax.data.listing import list_images
from vit_jax.data.sources.opening import open_source

IMAGE = encode(make_image(0), 'PNG')


def header(name, size, kind=b'0', link='') -> bytes:
  """The header of a member; sizes may be negative or absurd."""
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, link
  block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  if 0 <= size < 8**11:
    field = b'%011o\0' % size
  else:  # two's complement, as GNU tar writes it
    field = size.to_bytes(12, 'big', signed=True)
    field = bytes([0xFF if size < 0 else 0x80]) + field[1:]
  block[124:136] = field
  block[148:156] = b' ' * 8
  block[148:156] = b'%06o\0 ' % sum(block)
  return bytes(block)


def padded(data: bytes) -> bytes:
  return data + bytes(-len(data) % 512)


def pax(**values: str) -> bytes:
  records = b''
  for key, value in values.items():
    text = f' {key.replace("__", ".")}={value}\n'.encode()
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
      length += 1
    records += str(length).encode() + text
  return header('pax', len(records), b'x') + padded(records)


MEMBER = header('a/x.png', len(IMAGE)) + padded(IMAGE)
END = bytes(1024)
TARS = {
  'a size of 8 exbibytes': header('a/x.png', 2**63) + bytes(512),
  'a negative size': header('a/x.png', -512),
  'a negative size of a special file': header('a/x', -512, b'Z'),
  'a negative size behind a member': MEMBER + header('x', -1024, b'Z'),
  'a negative size in an extension': pax(size='-512') + header('a/x.png', 9),
  'a long name of 50 GB': header('x', 50 * 2**30, b'L') + bytes(512),
  'a long name of negative length': header('x', -512, b'L') + bytes(512),
  'an extension of 50 GB': header('x', 50 * 2**30, b'x') + bytes(512),
  'extensions of extensions': pax(comment='x') * 1500 + MEMBER,
  'long names of long names': (header('x', 2, b'L') + padded(b'y')) * 1500,
  'a sparse map without end': (
    pax(
      GNU__sparse__major='1',
      GNU__sparse__minor='0',
      GNU__sparse__name='a/x.png',
      GNU__sparse__realsize='9',
    )
    + header('a/x.png', 512)
    + padded(b'999999999999\n1\n')
  ),
  'an old sparse map without end': header('a/x.png', 512, b'S')[:482] + b'\1',
  'a length of an extension that is none': header('p', 9, b'x')
  + padded(b'0 a=b\n'),
}


@pytest.mark.parametrize('name', TARS)
def test_tars_that_are_refused(tmp_path, name):
  path = tmp_path / 'x.tar'
  path.write_bytes(MEMBER + TARS[name] + END)
  try:
    listed = list_images(path)
  except ValueError as e:
    assert str(path) in str(e) and len(str(e)) < 600
  else:  # nothing but the sound member
    assert {f.size for f in listed.files} <= {len(IMAGE)}


def test_names_and_links_lead_nowhere_outside(tmp_path):
  secret = tmp_path / 'secret.png'
  secret.write_bytes(IMAGE)
  path = tmp_path / 'in' / 'x.tar'
  path.parent.mkdir()
  path.write_bytes(
    MEMBER
    + header('../../secret.png', 9)
    + padded(b'traversal')
    + header(f'{tmp_path}/a/abs.png', len(IMAGE))
    + padded(IMAGE)
    + header('a/out.png', 0, b'2', str(secret))
    + header('a/up.png', 0, b'2', '../../secret.png')
    + header('a/hard.png', 0, b'1', '/etc/passwd')
    + header('a/twin.png', 0, b'1', 'a/x.png')
    + header('a/itself.png', 0, b'1', 'a/itself.png')
    + header('a/zero.png', 0, b'3')
    + header('a/pipe.png', 0, b'6')
    + END
  )
  listed = list_images(path)
  names = {file.name for file in listed.files}
  assert 'a/x.png' in names and 'a/twin.png' in names
  assert all(file.read() == IMAGE for file in listed.files)
  assert {file.path for file in listed.files} == {str(path)}
  assert listed.skipped['broken link'] == 4
  assert listed.skipped['special file'] == 2
  pack.pack(path, tmp_path / 'out')
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'in',
    'out',
    'secret.png',
  ]


def test_tars_in_tars_have_a_bound(tmp_path):
  data = MEMBER + END
  for _ in range(1100):
    data = header('x.tar', len(data)) + padded(data) + END
    if len(data) > 2e6:  # Python's reader fails far earlier
      break
  path = tmp_path / 'x.tar'
  path.write_bytes(data)
  with pytest.raises(ValueError, match='within more than 3 others'):
    list_images(path)


def test_an_image_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
  """A file can claim any size without taking space on the disk."""
  monkeypatch.setattr(listing, 'MAX_BYTES', 5000)
  root = write_images(tmp_path / 'data', {'a': 2, 'b': 2})
  with open(root / 'a' / 'huge.jpg', 'wb') as file:
    file.truncate(10**12)
  meta = pack.pack(root, tmp_path / 'out')['train']
  assert (meta['num_examples'], meta['bad']) == (4, 1)
  assert '1,000,000,000,000 bytes' in meta['bad_examples'][0]['reason']
  file = io.BytesIO(header('a/x.png', 6000) + padded(bytes(6000)) + END)
  (tmp_path / 'x.tar').write_bytes(file.getvalue())
  with pytest.raises(OSError, match='6,000 bytes'):
    list_images(tmp_path / 'x.tar').files[0].read()


@pytest.mark.parametrize('label', [10**12, -1, 2**31, 10**30])
def test_class_numbers_have_a_bound_in_every_file_of_labels(tmp_path, label):
  for name, text in (
    ('x.csv', f'file,label\nx.jpg,{label}\ny.jpg,0\n'),
    ('x.json', json.dumps({'x.jpg': label, 'y.jpg': 0})),
    ('x.jsonl', f'{{"file": "x.jpg", "label": {label}}}\n' * 2),
    ('lists.json', json.dumps({'x.jpg': [label, 1], 'y.jpg': [0]})),
  ):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f'class number {label}'):
      labels.read_labels(tmp_path / name)


@pytest.mark.parametrize(
  'change',
  [
    {'num_classes': 10**12},
    {'num_classes': -3},
    {'num_classes': 2.5},
    {'class_names': ['a'] * 3},
    {'num_examples': 10**12},
    {'num_examples': 3},
    {'image_shape': [10**9, 10**9]},
    {'shards': [{'file': '../../x', 'count': 4}]},
    {'shards': [{'file': 'x', 'count': -4}]},
    {'shards': None},
    {'version': 3},
    {'fingerprint': 5},
  ],
)
def test_metadata_of_packed_data_is_held_against_itself(tmp_path, change):
  meta = pack.pack(write_images(tmp_path / 'in', {'a': 2, 'b': 2}), tmp_path)
  path = tmp_path / 'train.packed.json'
  written = json.loads(path.read_text())
  assert {**written, 'checksum': 0} == {**meta['train'], 'checksum': 0}
  for values in ({**written, **change}, {**meta['train'], **change}):
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r'train.packed.json is damaged'):
      open_source('packed', split='train', data_dir=str(tmp_path))
  path.write_text('[' * 100_000)
  with pytest.raises(ValueError, match=r'train.packed.json is damaged'):
    open_source('packed', split='train', data_dir=str(tmp_path))
