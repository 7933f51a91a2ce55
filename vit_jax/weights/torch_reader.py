"""Reads PyTorch checkpoints without PyTorch and without running their code.

A checkpoint is a pickle, and unpickling can call any function. The unpickler
here allows only the few names that tensors and plain containers need; any other
name is an error that shows it. Both kinds of checkpoints are read: zip archives
(since PyTorch 1.6) and the older streams of pickles.
"""

import collections
from collections.abc import Callable
import dataclasses
import io
import math
import pickle
from typing import IO, Any
import zipfile

import numpy as np

from vit_jax.weights.errors import WeightsError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
  'DoubleStorage': 'f8',
  'FloatStorage': 'f4',
  'HalfStorage': 'f2',
  'BFloat16Storage': 'u2',
  'LongStorage': 'i8',
  'IntStorage': 'i4',
  'ShortStorage': 'i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}
# Types of values that training scripts store with the weights. Such a value is
# replaced by an empty placeholder.
_INERT = {
  ('argparse', 'Namespace'),
  ('pathlib', 'PosixPath'),
  ('torch', 'device'),
  ('torch', 'dtype'),
  ('torch', 'float32'),
  ('torch.torch_version', 'TorchVersion'),
  ('numpy', 'dtype'),
  ('_codecs', 'encode'),
  ('numpy.core.multiarray', 'scalar'),
  ('numpy._core.multiarray', 'scalar'),
}


class _Inert:
  """A placeholder, which ignores its arguments and its state."""

  def __new__(cls, *args, **kwargs):
    return object.__new__(cls)

  def __init__(self, *args, **kwargs):
    pass

  def __setstate__(self, state):
    pass

  def __call__(self, *args, **kwargs):
    return self


@dataclasses.dataclass
class _Storage:
  """A block of values that tensors are views of.

  Attributes:
    kind: type of the values, a key of _DTYPES.
    numel: number of values.
    data: the values, None before they are read.
  """

  kind: str
  numel: int
  data: np.ndarray | None = None

  def fill(self, raw: bytes, byteorder: str) -> None:
    """Sets the values from bytes; `byteorder` is '<' (little) or '>' (big)."""
    dtype = np.dtype(f'{byteorder}{np.dtype(_DTYPES[self.kind]).str[1:]}')
    if len(raw) < self.numel * dtype.itemsize:
      raise WeightsError(
        f'a storage of {self.numel} {self.kind} values has '
        f'only {len(raw)} bytes'
      )
    data = np.frombuffer(raw, dtype, self.numel)
    if self.kind == 'BFloat16Storage':
      data = (data.astype(np.uint32) << 16).view(np.float32)
    elif self.kind == 'HalfStorage':
      data = data.astype(np.float32)
    self.data = data.astype(data.dtype.newbyteorder('='), copy=False)


@dataclasses.dataclass
class _Tensor:
  """A view of a storage, whose values may be read later.

  Attributes:
    storage: the storage.
    offset: position of the first value in the storage.
    size: the shape.
    stride: for each axis, the distance of neighbors in the storage.
  """

  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self) -> np.ndarray:
    """The tensor as a numpy array; WeightsError if it is not in its storage."""
    ok = (
      isinstance(self.storage, _Storage)
      and len(self.size) == len(self.stride)
      and all(
        isinstance(n, int) and n >= 0
        for n in (self.offset, *self.size, *self.stride)
      )
    )
    if not ok:
      raise WeightsError('it has a tensor with an impossible layout')
    if not math.prod(self.size):
      return np.zeros(self.size, np.float32)
    last = self.offset + sum(
      (n - 1) * s for n, s in zip(self.size, self.stride, strict=True)
    )
    if last >= self.storage.numel:
      raise WeightsError('it has a tensor that reaches beyond its storage')
    if self.storage.data is None:
      raise WeightsError('it has a tensor whose storage is missing')
    data = self.storage.data[self.offset :]
    return np.lib.stride_tricks.as_strided(
      data, self.size, [s * data.itemsize for s in self.stride], writeable=False
    )


def _rebuild_tensor(storage, offset, size, stride, *_):
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data, *_):
  return data


_ALLOWED = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  ('torch._utils', '_rebuild_parameter_with_state'): _rebuild_parameter,
  ('torch', 'Size'): tuple,
  ('builtins', 'set'): set,
  ('__builtin__', 'set'): set,
}


class _Unpickler(pickle.Unpickler):
  """An unpickler that makes only tensors and plain containers."""

  def __init__(self, file, load_storage=None):
    super().__init__(file, encoding='utf-8')
    self._load_storage = load_storage

  def find_class(self, module, name):
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    if module in ('torch', 'torch.storage') and name in _DTYPES:
      return name  # a storage's type is only used as a key of _DTYPES
    if (module, name) in _INERT:
      return _Inert
    raise WeightsError(
      f'it needs code to be run: its pickle calls {module}.{name}. Only '
      'tensors and plain containers are read. If you trust the file, load it '
      'with the program that wrote it and save its state dict as .safetensors'
    )

  def persistent_load(self, pid):
    if (
      self._load_storage is None
      or not isinstance(pid, tuple)
      or len(pid) < 5
      or pid[0] != 'storage'
      or pid[1] not in _DTYPES
      or not isinstance(pid[4], int)
      or pid[4] < 0
    ):
      raise WeightsError(f'it has an unknown kind of storage: {str(pid)[:80]}')
    return self._load_storage(*pid[1:])


def _unpickle(file: IO[bytes], load_storage: Callable | None = None) -> Any:
  """The next value of a pickle; WeightsError if it cannot be read.

  Args:
    file: the pickle.
    load_storage: makes a `_Storage` of the arguments that the pickle gives.
  """
  try:
    return _Unpickler(file, load_storage).load()
  except WeightsError:
    raise
  except Exception as e:  # a damaged pickle can raise anything
    raise WeightsError(f'its pickle is damaged or truncated ({e})') from e


def _read_zip(file: IO[bytes]) -> Any:
  """Unpickles the tree in a zip archive."""
  with zipfile.ZipFile(file) as archive:
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
      order = {b'big': '>'}.get(archive.read(f'{root}byteorder'), '<')
    storages = {}

    def load_storage(kind, key, location, numel, *_):
      if key not in storages:
        name = f'{root}data/{key}'
        if name not in names:
          raise WeightsError(f'storage {key} is missing')
        storages[key] = _Storage(kind, numel)
        storages[key].fill(archive.read(name), order)
      return storages[key]

    return _unpickle(io.BytesIO(archive.read(pickles[0])), load_storage)


def _read_legacy(file: IO[bytes]) -> Any:
  """Unpickles the tree in a stream of pickles (before PyTorch 1.6)."""
  if _unpickle(file) != _LEGACY_MAGIC:
    raise WeightsError('it is a pickle, but not of a PyTorch checkpoint')
  _unpickle(file)  # protocol version
  system = _unpickle(file)
  little = not isinstance(system, dict) or system.get('little_endian', True)
  order = '<' if little else '>'
  storages = {}

  def load_storage(kind, key, location, numel, view=None):
    if view is not None:
      raise WeightsError('storages that are views of others are not supported')
    return storages.setdefault(key, _Storage(kind, numel))

  tree = _unpickle(file, load_storage)
  for key in _unpickle(file):
    if key not in storages:
      raise WeightsError(f'storage {key} is in the file, but no tensor uses it')
    header = file.read(8)
    if len(header) < 8:
      raise WeightsError(f'it is truncated before storage {key}')
    numel = int.from_bytes(header, 'little' if little else 'big')
    storage = storages[key]
    if numel != storage.numel:
      raise WeightsError(
        f'storage {key} has {numel} values, expected {storage.numel}'
      )
    storage.fill(
      file.read(numel * np.dtype(_DTYPES[storage.kind]).itemsize), order
    )
  empty = [key for key, storage in storages.items() if storage.data is None]
  if empty:
    raise WeightsError(f'storage {empty[0]} is missing')
  return tree


def _state_dict(tree: Any) -> dict[str, Any]:
  """The dictionary of weights in the tree of a training checkpoint."""
  for _ in range(3):
    if not isinstance(tree, dict):
      break
    inner = next(
      (
        tree[k]
        for k in ('model', 'state_dict', 'model_state_dict')
        if isinstance(tree.get(k), dict)
      ),
      None,
    )
    if inner is None:
      return tree
    tree = inner
  if isinstance(tree, dict):
    return tree
  raise WeightsError('it holds no dictionary of tensors')


def read_torch(file: IO[bytes]) -> dict[str, np.ndarray]:
  """Reads the tensors of a PyTorch checkpoint.

  If the checkpoint has a dictionary 'model', 'state_dict' or
  'model_state_dict', its tensors are read; a moving average in another
  dictionary is not. Half precision is converted to float32.

  Args:
    file: the checkpoint, open in binary mode.

  Returns:
    {name: array}.

  Raises:
    WeightsError: the file is truncated or not a checkpoint, or loading it would
      run code.
  """
  legacy = file.read(2) != b'PK'
  file.seek(0)
  try:
    tree = _read_legacy(file) if legacy else _read_zip(file)
  except zipfile.BadZipFile as e:
    raise WeightsError(f'its zip archive is damaged or truncated ({e})') from e
  arrays = {
    str(name): x.array()
    for name, x in _state_dict(tree).items()
    if isinstance(x, _Tensor)
  }
  if not arrays:
    raise WeightsError('it holds no tensors')
  return arrays
