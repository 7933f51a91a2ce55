"""Reading weight files: every format, and every kind of bad file."""

import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.weights import WeightsError, WeightsMetadata, read

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'weights'
A = np.arange(6, dtype=np.float32).reshape(2, 3)


class Evil:
  """Unpickling an object of this class creates a directory."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


def error(path) -> str:
  with pytest.raises(WeightsError) as e:
    read(path)
  assert str(path) in str(e.value)
  return str(e.value)


@pytest.mark.parametrize('file', ['zip.pth', 'legacy.pth'])
def test_pytorch_files_without_pytorch(file, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # importing it would fail
  arrays, metadata, kind = read(FIXTURES / file)
  assert kind == 'torch' and metadata == WeightsMetadata()
  assert sorted(arrays) == [
    'a',
    'b',
    'c',
    'n',
  ]  # without the average and the epoch
  np.testing.assert_array_equal(arrays['a'], A)
  np.testing.assert_array_equal(  # half precision and a transposed view
    arrays['b'], np.arange(6, dtype=np.float32).reshape(3, 2).T
  )
  assert arrays['b'].dtype == np.float32
  np.testing.assert_array_equal(  # bfloat16
    arrays['c'], np.array([1.5, -2.0], np.float32)
  )
  assert arrays['n'].shape == () and arrays['n'] == 7


@pytest.mark.parametrize('zipped', [True, False])
def test_pytorch_peer(tmp_path, zipped):
  torch = pytest.importorskip('torch')
  import argparse

  base = torch.randn(4, 6)
  tree = {
    'args': argparse.Namespace(lr=0.1),
    'best': np.float64(0.5),
    'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}},
    'state_dict': {
      'module.w': torch.nn.Parameter(base),
      'module.view': base[1:3, ::2],
      'module.scalar': torch.tensor(2.0),
      'module.empty': torch.zeros(0, 3),
      'module.long': torch.arange(3),
      'module.bool': torch.tensor([True]),
      'module.double': torch.ones(2, dtype=torch.float64),
    },
  }
  path = tmp_path / 'x.pth.tar'
  torch.save(tree, path, _use_new_zipfile_serialization=zipped)
  arrays = read(path).arrays
  want = {k: v.detach().numpy() for k, v in tree['state_dict'].items()}
  assert arrays.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(arrays[name], x)


def zip_checkpoint(path, data: bytes, storages=()):
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('archive/data.pkl', data)
    for key, raw in storages:
      z.writestr(f'archive/data/{key}', raw)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, zipped):
  data = pickle.dumps({'model': Evil(tmp_path / 'made')}, protocol=2)
  path = tmp_path / 'evil.pth'
  if zipped:
    zip_checkpoint(path, data)
  else:
    path.write_bytes(data)
  message = error(path)
  assert 'needs code to be run' in message and 'posix.mkdir' in message
  assert not (tmp_path / 'made').exists()


def test_placeholders_run_nothing(tmp_path):
  # Values of known types beside the weights become empty placeholders.
  data = (
    b'\x80\x02}q\x00X\x04\x00\x00\x00argsc_codecs\nencode\n'
    b'X\x01\x00\x00\x00ax\x06\x00\x00\x00latin1\x86Rs.'
  ).replace(b'x\x06', b'X\x06')
  zip_checkpoint(tmp_path / 'x.pth', data)
  assert 'no tensors' in error(tmp_path / 'x.pth')


def tensor_pickle(numel, size, stride, offset=0) -> bytes:
  """A pickle of {'w': tensor} as from PyTorch, whose layout may be invalid."""
  ints = lambda values: (
    b'('
    + b''.join(b'J' + int(v).to_bytes(4, 'little', signed=True) for v in values)
    + b't'
  )
  text = lambda s: b'X' + len(s).to_bytes(4, 'little') + s.encode()
  return (
    b'\x80\x02}'
    + text('w')
    + b'ctorch._utils\n_rebuild_tensor_v2\n(('
    + text('storage')
    + b'ctorch\nFloatStorage\n'
    + text('0')
    + text('cpu')
    + b'J'
    + int(numel).to_bytes(4, 'little', signed=True)
    + b'tQ'
    + b'J'
    + int(offset).to_bytes(4, 'little', signed=True)
    + ints(size)
    + ints(stride)
    + b'\x89Nt'
    + b'Rs.'
  )


def test_hand_made_checkpoint(tmp_path):
  path = tmp_path / 'x.pth'
  zip_checkpoint(path, tensor_pickle(6, (3, 2), (1, 3)), [('0', A.tobytes())])
  np.testing.assert_array_equal(read(path)[0]['w'], A.T)


@pytest.mark.parametrize(
  'numel,size,stride,offset,match',
  [
    (6, (100, 2), (1, 3), 0, 'reaches beyond'),
    (6, (2, 3), (3, 1), 1, 'reaches beyond'),
    (6, (2, 3), (-3, 1), 5, 'impossible layout'),
    (6, (2, 3), (3, 1), -1, 'impossible layout'),
    (6, (2, 3), (3,), 0, 'impossible layout'),
    (600, (2, 3), (3, 1), 0, 'only 24 bytes'),
  ],
)
def test_tensors_outside_of_their_storage(
  tmp_path, numel, size, stride, offset, match
):
  path = tmp_path / 'x.pth'
  zip_checkpoint(
    path, tensor_pickle(numel, size, stride, offset), [('0', A.tobytes())]
  )
  assert match in error(path)


def test_npz(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(
    path,
    **{
      'a/b': A,
      'half': A.astype(np.float16),
      'bf16': A.astype(ml_dtypes.bfloat16),
      'vit_jax': np.array(json.dumps({'classes': ['x']})),
    },
  )
  arrays, metadata, kind = read(path)
  assert kind == 'npz' and metadata == WeightsMetadata(classes=('x',))
  assert sorted(arrays) == ['a/b', 'bf16', 'half']
  for x in arrays.values():
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, A)


def test_npz_with_objects_is_refused(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, a=np.array([Evil(tmp_path / 'made')], dtype=object))
  assert 'a holds Python objects, whose loading would run code' in error(path)
  assert not (tmp_path / 'made').exists()


def test_safetensors(tmp_path):
  path = tmp_path / 'x.safetensors'
  save_file(
    {'a': A, 'b': A.astype(ml_dtypes.bfloat16), 'c': A.astype(np.float16)},
    path,
    {'format': 'pt'},
  )
  arrays, metadata, kind = read(path)
  assert kind == 'safetensors' and metadata == WeightsMetadata()
  for x in arrays.values():
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, A)


def whole_file(kind) -> bytes:
  if kind == 'npz':
    f = io.BytesIO()
    np.savez(f, a=A, b=np.zeros((50, 50)))
    return f.getvalue()
  if kind == 'safetensors':
    from safetensors.numpy import save

    return save({'a': A, 'b': np.zeros((50, 50))})
  return (FIXTURES / f'{kind}.pth').read_bytes()


@pytest.mark.parametrize('kind', ['npz', 'safetensors', 'zip', 'legacy'])
@pytest.mark.parametrize('fraction', [0.2, 0.6, 0.98])
def test_truncated(tmp_path, kind, fraction):
  data = whole_file(kind)
  path = tmp_path / 'weights'
  path.write_bytes(data[: int(len(data) * fraction)])
  message = error(path)
  assert 'truncated' in message or 'bytes' in message


@pytest.mark.parametrize('kind', ['npz', 'safetensors', 'zip', 'legacy'])
def test_damaged_bytes_never_escape_as_other_errors(tmp_path, kind):
  data, path = whole_file(kind), tmp_path / 'weights'
  rng = np.random.default_rng(0)
  for _ in range(60):
    broken = bytearray(data)
    for i in rng.integers(0, len(data), 3):
      broken[i] = rng.integers(256)
    path.write_bytes(broken)
    try:
      arrays = read(
        path
      ).arrays  # some damage changes only values, which is not noticed
    except WeightsError as e:
      assert str(path) in str(e)
    else:
      assert arrays


@pytest.mark.parametrize(
  'data,match',
  [
    (b'', 'empty'),
    (b'<!DOCTYPE html><html>', 'web page'),
    (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    (b'\x89PNG\r\n\x1a\n' + b'\0' * 20, 'PNG'),
    (b'\x89HDF\r\n' + b'\0' * 20, 'HDF5'),
    (b'\x1f\x8b\x08' + b'\0' * 20, 'gzip'),
    (b'{"a": 1}', 'JSON'),
    (b'hello, I am a note', 'text'),
    (b'\x01\x02\x03\x04' * 20, 'not those of a weight file'),
    (pickle.dumps([1, 2]), 'not of a PyTorch checkpoint'),
  ],
)
def test_foreign_files_are_named_for_what_they_are(tmp_path, data, match):
  path = tmp_path / 'file.npz'
  path.write_bytes(data)
  assert match in error(path)


def test_other_zip_and_missing_file(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('word/document.xml', 'x')
  assert 'word/document.xml' in error(path)
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('m/data.pkl', b'')
    z.writestr('m/code/__torch__.py', b'')
  assert 'TorchScript' in error(path)
  assert 'no such file' in error(tmp_path / 'nothing.npz')
  (tmp_path / 'folder').mkdir()
  assert 'has no checkpoint' in error(tmp_path / 'folder')


def fake_hub(monkeypatch, download):
  hub = types.ModuleType('huggingface_hub')
  hub.errors = types.SimpleNamespace(EntryNotFoundError=KeyError)
  hub.hf_hub_download = download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)


def test_hub_names(tmp_path, monkeypatch):
  save_file({'a': A}, tmp_path / 'model.safetensors')
  requests = []

  def download(repo, file, *, revision):
    requests.append((repo, file, revision))
    if file == 'model.safetensors' and repo == 'org/old':
      raise KeyError(file)
    return str(tmp_path / 'model.safetensors')

  fake_hub(monkeypatch, download)
  np.testing.assert_array_equal(read('hf:org/name')[0]['a'], A)
  read('hf:org/old')
  read('hf:org/name/sub/x.safetensors')
  read('hf:org/name@v1.2/sub/x.safetensors')
  read('hf://org/name@0a1b')
  assert requests == [
    ('org/name', 'model.safetensors', 'main'),
    ('org/old', 'model.safetensors', 'main'),
    ('org/old', 'pytorch_model.bin', 'main'),
    ('org/name', 'sub/x.safetensors', 'main'),
    ('org/name', 'sub/x.safetensors', 'v1.2'),
    ('org/name', 'model.safetensors', '0a1b'),
  ]
  with pytest.raises(WeightsError, match='hf:ORG/NAME'):
    read('hf:name')


def test_the_hub_revision_that_was_taken_is_said(tmp_path, monkeypatch, caplog):
  commit = '0123456789abcdef' * 2 + '01234567'
  path = tmp_path / 'snapshots' / commit / 'model.safetensors'
  path.parent.mkdir(parents=True)
  save_file({'a': A}, path)
  fake_hub(monkeypatch, lambda repo, file, *, revision: str(path))
  read('hf:org/name')
  assert f'hf:org/name@{commit}' in caplog.text
  caplog.clear()
  read(f'hf:org/name@{commit}')
  assert not caplog.text


def test_hub_offline_or_not_installed(monkeypatch):
  def download(repo, file, *, revision):
    raise ConnectionError('no route to host')

  fake_hub(monkeypatch, download)
  with pytest.raises(WeightsError, match='no route.*download the file'):
    read('hf:org/name')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(WeightsError, match='pip install'):
    read('hf:org/name')
