"""Reads PyTorch checkpoints without PyTorch and without running their code.

A checkpoint is a pickle, which `pickles.read_pickle` reads without calling
anything, and blocks of values. Both kinds of checkpoints are read: zip archives
(since PyTorch 1.6) and the older streams of pickles. What a file claims is held
against its size before memory is taken.
"""

import dataclasses
import math
import os
from typing import IO, Any
import zipfile

import numpy as np

from vit_jax.weights import archives
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.pickled import STORAGES, NumpyArray, Storage, Tensor
from vit_jax.weights.pickles import read_pickle
from vit_jax.weights.prefixes import flatten

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Views may share or repeat the values of a storage, so that a small file could
# claim arrays of any size. Weights that are tied need little more than the
# file.
_MOST_BYTES_PER_BYTE = 16
_ALWAYS_ALLOWED = 2**24  # bytes


@dataclasses.dataclass
class _Loaded(Storage):
  """A storage whose values are read if a tensor needs them.

  Attributes:
    file: the checkpoint, for the older kind of checkpoints.
    offset: position of the values there; -1 before it is known.
    archive, name: the zip archive and its member, for the newer kind.
    byteorder: '<' (little) or '>' (big).
    raw: the bytes, None before they are read.
    data: the values, None before a tensor needs them.
  """

  file: IO[bytes] | None = None
  offset: int = -1
  archive: zipfile.ZipFile | None = None
  name: str = ''
  byteorder: str = '<'
  raw: bytes | None = None
  data: np.ndarray | None = None

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(f'{self.byteorder}{np.dtype(STORAGES[self.kind]).str[1:]}')

  @property
  def nbytes(self) -> int:
    return self.numel * self.dtype.itemsize

  def values(self) -> np.ndarray:
    """The values, half precision converted to float32."""
    if self.data is None:
      self.load()
      data = np.frombuffer(self.raw or b'', self.dtype, self.numel)
      if self.kind == 'BFloat16Storage':
        data = (data.astype(np.uint32) << 16).view(np.float32)
      elif self.kind == 'HalfStorage':
        data = data.astype(np.float32)
      self.data = data.astype(data.dtype.newbyteorder('='), copy=False)
      self.raw = b''
    return self.data

  def load(self) -> None:
    """Reads the bytes, unless they are there."""
    if self.raw is not None:
      return
    if self.archive is not None:
      raw = archives.read_member(self.archive, self.name)
    elif self.file is not None and self.offset >= 0:
      self.file.seek(self.offset)
      raw = self.file.read(self.nbytes)
    else:
      raise WeightsError(f'storage {self.key} is missing')
    if len(raw) < self.nbytes:
      raise WeightsError(
        f'a storage of {self.numel} {self.kind} values has '
        f'only {len(raw)} bytes'
      )
    self.raw = raw


def _array(tensor: Tensor) -> np.ndarray:
  """A tensor as an array; WeightsError if it is not in its storage."""
  if not math.prod(tensor.size):
    return np.zeros(tensor.size, np.float32)
  last = tensor.offset + sum(
    (n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True)
  )
  if last >= tensor.storage.numel:
    raise WeightsError('it has a tensor that reaches beyond its storage')
  assert isinstance(tensor.storage, _Loaded)
  data = tensor.storage.values()[tensor.offset :]
  return np.lib.stride_tricks.as_strided(
    data,
    tensor.size,
    [s * data.itemsize for s in tensor.stride],
    writeable=False,
  )


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
  """Reads the tree in a zip archive, which is a file of `size` bytes."""
  archives.check(archive, size)
  names = set(archive.namelist())
  pickles = [n for n in names if n.endswith('/data.pkl')]
  if any('/code/' in n for n in names):
    raise WeightsError(
      'it is a TorchScript program, not a checkpoint; save '
      'the state dict of its module instead'
    )
  if len(pickles) != 1:
    raise WeightsError('it is a zip archive without a data.pkl')
  root = pickles[0].removesuffix('data.pkl')
  order = '<'
  if f'{root}byteorder' in names:
    written = archives.read_member(archive, f'{root}byteorder')
    order = {b'big': '>'}.get(written, '<')
  storages: dict[str, _Loaded] = {}

  def load_storage(new: Storage) -> Storage:
    name = f'{root}data/{new.key}'
    if name not in names:
      raise WeightsError(f'storage {new.key} is missing')
    loaded = _Loaded(
      new.kind,
      new.key,
      new.numel,
      archive=archive,
      name=name,
      byteorder=order,
    )
    return _same(storages.setdefault(new.key, loaded), new)

  return read_pickle(archives.open_member(archive, pickles[0]), load_storage)


def _same(storage: _Loaded, again: Storage) -> _Loaded:
  """A storage that is named several times; WeightsError if it differs."""
  if (storage.kind, storage.numel) != (again.kind, again.numel):
    raise WeightsError(
      f'storage {again.key} is {storage.numel} {storage.kind} values and '
      f'{again.numel} {again.kind} values'
    )
  return storage


def _read_legacy(file: IO[bytes], size: int) -> Any:
  """Reads the tree in a stream of pickles (before PyTorch 1.6)."""
  if read_pickle(file) != _LEGACY_MAGIC:
    raise WeightsError('it is a pickle, but not of a PyTorch checkpoint')
  read_pickle(file)  # protocol version
  system = read_pickle(file)
  little = not isinstance(system, dict) or bool(
    system.get('little_endian', True)
  )
  storages: dict[str, _Loaded] = {}

  def load_storage(new: Storage) -> Storage:
    loaded = _Loaded(
      new.kind,
      new.key,
      new.numel,
      file=file,
      byteorder='<' if little else '>',
    )
    return _same(storages.setdefault(new.key, loaded), new)

  tree = read_pickle(file, load_storage)
  keys = read_pickle(file)
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise WeightsError('its pickle is damaged: it has no list of storages')
  position = file.tell()
  for key in keys:
    if key not in storages:
      raise WeightsError(
        f'storage {key[:80]} is in the file, but no tensor uses it'
      )
    file.seek(position)
    header = file.read(8)
    if len(header) < 8:
      raise WeightsError(f'it is truncated before storage {key}')
    numel = int.from_bytes(header, 'little' if little else 'big')
    storage = storages[key]
    if numel != storage.numel:
      raise WeightsError(
        f'storage {key} has {numel} values, expected {storage.numel}'
      )
    storage.offset = position + len(header)
    position = storage.offset + storage.nbytes
    if position > size:
      raise WeightsError(
        f'it is truncated: storage {key} of {storage.nbytes:,} bytes ends '
        f'behind the {size:,} bytes of the file'
      )
  missing = [key for key, storage in storages.items() if storage.offset < 0]
  if missing:
    raise WeightsError(f'storage {missing[0]} is missing')
  return tree


@dataclasses.dataclass(frozen=True)
class TorchTensor:
  """A tensor of a checkpoint, which is made an array when it is needed."""

  layout: Tensor

  def array(self) -> np.ndarray:
    """The tensor; WeightsError if it is not in its storage."""
    return _array(self.layout)


def read_torch(file: IO[bytes]) -> dict[str, Any]:
  """Reads the tensors of a PyTorch checkpoint.

  Args:
    file: the checkpoint, open in binary mode.

  Returns:
    {names of nested dictionaries and of the tensor, joined by dots: tensor}.
    The method `array` of a tensor makes it a numpy array.

  Raises:
    WeightsError: the file is truncated or not a checkpoint, or loading it would
      run code.
  """
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  legacy = file.read(2) != b'PK'
  file.seek(0)
  if legacy:
    return _tensors(_read_legacy(file, size), size)
  try:
    with zipfile.ZipFile(file) as archive:
      return _tensors(_read_zip(archive, size), size)
  except (zipfile.BadZipFile, NotImplementedError) as e:
    raise WeightsError(f'its zip archive is damaged or truncated ({e})') from e


def _tensors(tree: Any, size: int) -> dict[str, Any]:
  """The tensors of a checkpoint of `size` bytes, whose values are read."""
  if not isinstance(tree, dict):
    raise WeightsError('it holds no dictionary of tensors')
  tensors = flatten(tree, lambda x: isinstance(x, Tensor | NumpyArray))
  layouts = [x for x in tensors.values() if isinstance(x, Tensor)]
  if not layouts:
    raise WeightsError('it holds no tensors')
  claimed = sum(4 * math.prod(x.size) for x in layouts)
  if claimed > max(_ALWAYS_ALLOWED, _MOST_BYTES_PER_BYTE * size):
    raise WeightsError(
      f'its tensors claim {claimed:,} bytes, more than {_MOST_BYTES_PER_BYTE} '
      f'times the {size:,} bytes of the file'
    )
  for x in layouts:
    assert isinstance(x.storage, _Loaded)
    x.storage.load()
  return {
    name: TorchTensor(x) if isinstance(x, Tensor) else x
    for name, x in tensors.items()
  }
