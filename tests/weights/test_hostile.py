"""Weight files that are made to crash, to hang or to take all memory."""

import copy
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from tests.weights.test_formats import A, tensor_pickle, zip_checkpoint
from vit_jax.weights import (
  WeightsError,
  WeightsMetadata,
  archives,
  pickled,
  pickles,
  prefixes,
  read,
)
from vit_jax.weights.formats import CHECKSUMS, checksums

MOST = 20_000  # instructions, in place of a million
START, STOP = b'\x80\x02', b'.'
# The tuple x of a program becomes (x, x), 40 times; comparing or hashing the
# last one would take 2**40 steps.
DOUBLED = b')' + b'q\x00h\x00\x86' * 40


def pairs(count: int) -> bytes:
  """A list of `count` times the same pair."""
  return b'](' + b'K\x00K\x01\x86q\x01' + b'h\x01' * (count - 1) + b'e'


PICKLES = {
  'nested tuples as a key': b'}' + b')' + b'\x85' * 20_000 + b'K\x01s',
  'doubled tuples as a key': b'}' + DOUBLED + b'K\x01s',
  'doubled tuples in a set': b'c__builtin__\nset\n](' + DOUBLED + b'e\x85R',
  'doubled tuples as a storage': b'(' + DOUBLED * 5 + b'tQ',
  'doubled tuples as a kind of storage': (
    b'(X\x07\x00\x00\x00storage' + DOUBLED + b'X\x01\x00\x00\x000NK\x01tQ'
  ),
  'nested lists': b']' * 20_000 + b'a' * 19_999,
  'nested dictionaries': b'}' + b'K\x00}' * 9_000 + b's' * 9_000,
  'nested calls': (
    b'ccollections\nOrderedDict\n' * 9_000 + b')' + b'\x85R' * 9_000
  ),
  'a large index': b'}r\xff\xff\xff\xff',
  'a large index of protocol 0': b'}p99999999999999999999\n',
  'a long line': b'L' + b'9' * 1_100_000,
  'a long number': b'\x8b' + struct.pack('<i', 300_000) + b'\x7f' * 300_000,
  'a number of negative length': b'\x8b\xff\xff\xff\xff',
  'a huge frame': b'\x95' + b'\xff' * 8 + b'}',
  'huge bytes': b'\x8e' + struct.pack('<Q', 2**40) + b'x',
  'a huge text': b'\x8d' + struct.pack('<Q', 2**62) + b'x',
  'a huge array of bytes': b'\x96' + struct.pack('<Q', 2**62) + b'x',
  'a huge short text': b'X\xff\xff\xff\xffx',
  'copies of a value': b'K\x00' + b'2' * MOST,
  'empty dictionaries': b'}' * MOST,
  'marks': b'(' * MOST,
  'copies of a list': (
    pairs(5_000)
    + b'\x85q\x02'
    + b'ccollections\nOrderedDict\nq\x00' * 2
    + b'h\x00h\x02R' * 30
  ),
  'a call without a function': b'K\x01)R',
  'attributes of a function': (
    b'ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b'
  ),
  'attributes of a class': b'ccollections\nOrderedDict\n}K\x01K\x02sb',
  'an extension': b'\x82\x01',
  'an instance': b'(iposix\nsystem\n',
  'an object': b'(cposix\nsystem\nX\x02\x00\x00\x00lso',
  'a function by its name': (
    b'X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93'
  ),
  'a buffer': b'\x97',
  'a storage by its text': b'P0\n',
  'an unknown memory': b'h\x05',
  'many axes': (b'ctorch\nSize\n](' + b'K\x01' * 10_000 + b'e\x85R'),
  'a long name': b'}X' + struct.pack('<I', 10**6) + b'x' * 10**6 + b'K\x01s',
}


def refused(path) -> str:
  with pytest.raises(WeightsError) as e:
    read(path)
  message = str(e.value)
  assert str(path) in message and len(message) < 1000
  return message


@pytest.mark.parametrize('name', PICKLES)
@pytest.mark.parametrize('zipped', [True, False])
def test_pickles_that_are_made_to_hang_or_crash(
  tmp_path, monkeypatch, name, zipped
):
  monkeypatch.setattr(pickles, 'MOST_INSTRUCTIONS', MOST)
  path = tmp_path / 'x.pth'
  data = START + PICKLES[name] + STOP
  if zipped:
    zip_checkpoint(path, data)
  else:
    path.write_bytes(data)
  start = time.monotonic()
  refused(path)
  assert time.monotonic() - start < 20
  assert pickled._tensor.__defaults__ == (None,) * 4


def test_pickles_take_little_memory(tmp_path):
  path = tmp_path / 'x.pth'
  for name in ('a large index', 'huge bytes', 'a huge frame', 'a huge text'):
    path.write_bytes(START + PICKLES[name] + STOP)
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, name


def test_containers_that_hold_one_another_many_times(tmp_path, monkeypatch):
  monkeypatch.setattr(prefixes, '_MOST_VISITED', 10_000)
  path = tmp_path / 'x.pth'
  # A list of ten times the same list, eight times over: 10^8 leaves.
  grown = b''.join(b'](' + b'h\x00' * 10 + b'eq\x000' for _ in range(8))
  data = START + tensor_pickle(6, (2, 3), (3, 1))[2:-1]
  data += b'X\x01\x00\x00\x00o]q\x000' + grown + b'h\x00s' + STOP
  zip_checkpoint(path, data, [('0', A.tobytes())])
  assert 'hold more than 10,000 values' in refused(path)


def test_numpy_arrays_whose_state_lies(tmp_path):
  path = tmp_path / 'x.pth'
  for shape, code, data in (
    (b'K\x05', b'f4', b'1234'),
    (b'\x8a\x08' + b'\xff' * 7 + b'\x7f', b'f4', b'1234'),
    (b'K\x01', b'O8', b'12345678'),
    (b'K\x01', b'(2,)', b'12345678'),
  ):
    text = lambda s: b'X' + struct.pack('<I', len(s)) + s
    array = (
      b'cnumpy.core.multiarray\n_reconstruct\n)R(K\x01' + shape + b'\x85'
      b'cnumpy\ndtype\n' + text(code) + b'\x85R\x89'
      b'c_codecs\nencode\n' + text(data) + b'\x85Rtb'
    )
    weights = tensor_pickle(6, (2, 3), (3, 1))[2:-1]
    body = START + weights + text(b'v') + array + b's' + STOP
    zip_checkpoint(path, body, [('0', A.tobytes())])
    assert 'numpy array' in refused(path) or 'layout' in refused(path)


def test_nested_byte_orders_are_not_printed(tmp_path):
  """The text of doubled tuples would have 2^40 parts."""
  text = lambda s: b'X' + struct.pack('<I', len(s)) + s
  array = (
    b'cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85'
    b'cnumpy\ndtype\n' + text(b'f4') + b'\x85R(K\x03' + DOUBLED + b'tb\x89'
    b'c_codecs\nencode\n' + text(b'1234') + b'\x85Rtb'
  )
  body = START + tensor_pickle(6, (2, 3), (3, 1))[2:-1]
  path = tmp_path / 'x.pth'
  zip_checkpoint(
    path, body + text(b'v') + array + b's' + STOP, [('0', A.tobytes())]
  )
  values = read(path, prefix='').arrays['v']
  assert values == np.frombuffer(b'1234', '<f4')


def test_a_state_in_which_tuples_are_keys_is_left_out(tmp_path):
  """Training programs may save such dictionaries beside the weights."""
  weights = tensor_pickle(6, (2, 3), (3, 1))[2:-1]
  path = tmp_path / 'x.pth'
  data = START + b'}(X\x05\x00\x00\x00model' + weights
  zip_checkpoint(
    path,
    data + b'X\x01\x00\x00\x00o}K\x01K\x02\x86K\x03su' + STOP,
    [('0', A.tobytes())],
  )
  np.testing.assert_array_equal(read(path).arrays['w'], A)


@pytest.mark.parametrize(
  'size, stride', [((2**31 - 1,), (0,)), ((9000, 9000), (0, 0))]
)
def test_repeated_values_are_bounded(tmp_path, size, stride):
  path = tmp_path / 'x.pth'
  zip_checkpoint(path, tensor_pickle(6, size, stride), [('0', A.tobytes())])
  assert 'claim' in refused(path)


def test_a_storage_of_two_sizes(tmp_path):
  one = tensor_pickle(6, (2, 3), (3, 1))
  two = tensor_pickle(2**30, (2, 3), (3, 1)).replace(b'w', b'v', 1)
  path = tmp_path / 'x.pth'
  zip_checkpoint(
    path,
    START
    + b'}(X\x05\x00\x00\x00model'
    + one[2:-1]
    + b'X\x01\x00\x00\x00o'
    + two[2:-1]
    + b'u'
    + STOP,
    [('0', A.tobytes())],
  )
  assert 'storage 0 is 6 FloatStorage values' in refused(path)


def test_zip_archives_that_unpack_to_more_than_they_may(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, '_ALWAYS_ALLOWED', 10**6)
  path = tmp_path / 'x'
  bomb = bytes(7_000_000)
  for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    with zipfile.ZipFile(path, 'w', method) as z:
      z.writestr('archive/data.pkl', bomb if method == 8 else bomb[:1000])
    message = refused(path)
    assert 'claims 7,000,000' in message or 'is compressed by' in message
  # A member that says of itself that it is smaller than it is.
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
    z.writestr('a.npy', bomb)
  data = path.read_bytes().replace(
    struct.pack('<I', len(bomb)), struct.pack('<I', 100)
  )
  path.write_bytes(data)
  tracemalloc.start()
  assert 'a is damaged' in refused(path)
  assert tracemalloc.get_traced_memory()[1] < 2e6
  tracemalloc.stop()


def test_members_of_a_zip_archive_that_share_their_bytes(tmp_path):
  path = tmp_path / 'x.npz'
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('a.npy', bytes(100_000))
    first = z.infolist()[0]
    for i in range(100):
      again = copy.copy(first)
      again.filename = f'b{i}.npy'
      z.filelist.append(again)
    z._didModify = True
  assert 'overlap' in refused(path)


def test_a_zip_archive_whose_directory_hides_members(tmp_path):
  """The comment of the first member swallows the entries that follow."""
  path = tmp_path / 'x.npz'
  np.savez(path, a=A, b=A, c=A)
  data = bytearray(path.read_bytes())
  data[data.index(b'PK\1\2') + 33] = 64  # high byte of the comment's length
  path.write_bytes(data)
  assert 'has 1 members, and its end says 3' in refused(path)


@pytest.mark.parametrize(
  'header',
  [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-6, -1), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (99999999999,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + '(' * 3000,
    '__import__("os").system("touch made")',
    '(' * 9000,
    "{'descr': '" + 'x' * 9000 + "', 'fortran_order': False, 'shape': (6,), }",
  ],
)
def test_npz_headers_that_lie(tmp_path, header, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'x.npz'
  text = header.encode() + b'\n'
  with zipfile.ZipFile(path, 'w') as z:
    start = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text))
    data = b'' if "'<U0'" in header else A.tobytes()
    z.writestr('a.npy', start + text + data)
  assert os.listdir(tmp_path) == ['x.npz']
  refused(path)
  assert os.listdir(tmp_path) == ['x.npz']


@pytest.mark.parametrize(
  'entry',
  [
    {'dtype': 'F32', 'shape': [10**12], 'data_offsets': [0, 24]},
    {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 4 * 10**12]},
    {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [24, 0]},
    {'dtype': 'F32', 'shape': [2**62, 8], 'data_offsets': [0, 0]},
    {'dtype': 'F32', 'shape': [-2, -3], 'data_offsets': [0, 24]},
    {'dtype': 'X9', 'shape': [2, 3], 'data_offsets': [0, 24]},
  ],
)
def test_safetensors_headers_that_lie(tmp_path, entry):
  path = tmp_path / 'x.safetensors'
  header = json.dumps({'a': entry}).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + A.tobytes())
  refused(path)


def test_safetensors_headers_of_an_impossible_length(tmp_path):
  path = tmp_path / 'x.safetensors'
  for length in (2**31, 2**32 - 1, 10**8):
    path.write_bytes(struct.pack('<Q', length) + b'{}' + bytes(100))
    refused(path)
  nested = b'{"a":' + b'[' * 100_000
  path.write_bytes(struct.pack('<Q', len(nested)) + nested)
  refused(path)


def test_flipped_bits_of_safetensors_files_are_noticed(tmp_path):
  path = tmp_path / 'x.safetensors'
  header = {'format': 'pt', CHECKSUMS: checksums({'a': A})}
  data = bytearray(save({'a': A}, header))
  path.write_bytes(data)
  np.testing.assert_array_equal(read(path).arrays['a'], A)
  data[-5] ^= 1
  path.write_bytes(data)
  assert 'the checksums of its arrays' in refused(path)


@pytest.mark.parametrize(
  'record',
  [
    {'version': 1, 'num_classes': 10**12},
    {'version': 1, 'num_classes': -1},
    {'version': 1, 'num_classes': '7'},
    {'version': 1, 'image_size': [10**9, 10**9]},
    {'version': 99},
  ],
)
def test_absurd_metadata_is_refused(tmp_path, record):
  with pytest.raises(ValueError, match='its metadata has'):
    WeightsMetadata.from_json(record)
  path = tmp_path / 'x.npz'
  np.savez(path, a=A, vit_jax=np.array(json.dumps(record)))
  assert 'its metadata has' in refused(path)


def test_weights_are_not_read_from_pipes_and_devices(tmp_path):
  os.mkfifo(tmp_path / 'x.npz')
  assert 'a named pipe, not a regular file' in refused(tmp_path / 'x.npz')
  (tmp_path / 'y.pth').symlink_to('/dev/zero')
  assert 'a device, not a regular file' in refused(tmp_path / 'y.pth')


def test_a_reader_that_never_calls_pickle(monkeypatch, tmp_path):
  def fail(*unused, **options):
    raise AssertionError('the machine of the standard library was used')

  for name in ('load', 'loads', 'Unpickler', '_Unpickler'):
    monkeypatch.setattr(pickle, name, fail)
  path = tmp_path / 'x.pth'
  zip_checkpoint(path, tensor_pickle(6, (3, 2), (1, 3)), [('0', A.tobytes())])
  np.testing.assert_array_equal(read(path).arrays['w'], A.T)
  assert pickles.read_pickle(io.BytesIO(b'\x80\x02K\x07.')) == 7
