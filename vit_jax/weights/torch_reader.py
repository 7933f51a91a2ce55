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
import re
from typing import IO, Any
import zipfile

import numpy as np

from vit_jax.weights.errors import WeightsError
from vit_jax.weights.prefixes import flatten

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
_PATHS = (
  *('Path', 'PosixPath', 'WindowsPath'),
  *('PurePath', 'PurePosixPath', 'PureWindowsPath'),
)
_TORCH_DTYPES = (
  *('float64', 'float32', 'float16', 'bfloat16', 'complex64', 'complex128'),
  *('int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8'),
  *('bool', 'float8_e4m3fn', 'float8_e5m2', 'qint8', 'quint8', 'qint32'),
)
# Types of values that training scripts store with the weights. Such a value is
# replaced by an empty placeholder.
_INERT = {
  ('argparse', 'Namespace'),
  ('types', 'SimpleNamespace'),
  ('datetime', 'datetime'),
  ('datetime', 'timedelta'),
  # Python 3.13 has the classes of paths in another module.
  *((m, name) for m in ('pathlib', 'pathlib._local') for name in _PATHS),
  *(('torch', name) for name in ('device', 'dtype', 'strided')),
  *(('torch', name) for name in _TORCH_DTYPES),
  ('torch.serialization', '_get_layout'),
  ('torch.nn.parameter', 'Parameter'),
  ('torch.nn.parameter', 'Buffer'),
  ('torch.torch_version', 'TorchVersion'),
  ('numpy.core.multiarray', 'scalar'),
  ('numpy._core.multiarray', 'scalar'),
  # The function that makes the missing values of a defaultdict.
  *(
    (module, name)
    for module in ('builtins', '__builtin__')
    for name in ('dict', 'list', 'tuple', 'int', 'float', 'bool', 'str')
  ),
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


class _Dtype(_Inert):
  """The dtype of a numpy array: a letter and a number of bytes, such as 'f4'.

  Attributes:
    code: the letter and the number.
    byteorder: '<' or '>', or '|' for single bytes.
  """

  code: Any = None
  byteorder: Any = '<'

  def __init__(self, code=None, *_, **__):
    self.code = code

  def __setstate__(self, state):
    if isinstance(state, tuple) and len(state) > 1:
      self.byteorder = state[1]


class _Array(_Inert):
  """A numpy array of numbers, made of the state in its pickle."""

  _state: Any = None

  def __setstate__(self, state):
    self._state = state

  def array(self) -> np.ndarray:
    """The array; WeightsError if it is not one of numbers."""
    try:
      _, shape, dtype, is_fortran, data = self._state
      if not re.fullmatch('[fiub][1248]', dtype.code):
        raise ValueError(f'dtype {dtype.code}')
      order = dtype.byteorder if dtype.byteorder in '<>' else '='
      values = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(order))
      return values.reshape(shape, order='F' if is_fortran else 'C')
    except (AttributeError, TypeError, ValueError) as e:
      raise WeightsError(f'it has a numpy array that is damaged ({e})') from e


def _rebuild_tensor(storage, offset, size, stride, *_):
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data, *_):
  return data


def _rebuild_subclass(rebuild, _, arguments, *__):
  """A tensor of a subclass, such as a parameter, as a plain tensor."""
  if rebuild not in (_rebuild_tensor, _rebuild_parameter):
    raise WeightsError('it has a tensor of an unknown class')
  return rebuild(*arguments)


def _make_dict(*arguments):
  """The dict of a defaultdict or Counter, without what makes new values."""
  values = arguments[-1] if arguments else None
  return dict(values) if isinstance(values, dict) else {}


def _make_array(*_):
  return _Array()


def _encode(text, encoding='latin1'):
  """The bytes that Python 3 writes as text in the old protocol of pickles."""
  if not isinstance(text, str) or encoding not in ('latin1', 'utf-8'):
    raise WeightsError('it has bytes in an unknown encoding')
  return text.encode(encoding)


_ALLOWED = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('collections', 'defaultdict'): _make_dict,
  ('collections', 'Counter'): _make_dict,
  ('_codecs', 'encode'): _encode,
  ('numpy', 'dtype'): _Dtype,
  ('numpy', 'ndarray'): _Array,
  ('numpy.core.multiarray', '_reconstruct'): _make_array,
  ('numpy._core.multiarray', '_reconstruct'): _make_array,
  ('torch._tensor', '_rebuild_from_type_v2'): _rebuild_subclass,
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
  legacy = file.read(2) != b'PK'
  file.seek(0)
  try:
    tree = _read_legacy(file) if legacy else _read_zip(file)
  except zipfile.BadZipFile as e:
    raise WeightsError(f'its zip archive is damaged or truncated ({e})') from e
  if not isinstance(tree, dict):
    raise WeightsError('it holds no dictionary of tensors')
  tensors = flatten(tree, lambda x: isinstance(x, _Tensor | _Array))
  if not any(isinstance(x, _Tensor) for x in tensors.values()):
    raise WeightsError('it holds no tensors')
  return tensors
