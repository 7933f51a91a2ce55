"""The values that the pickle of a PyTorch checkpoint can name.

`pickles.read_pickle` makes them. Each function gets what is in the pickle, and
so checks all of it.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax.weights.errors import WeightsError

STORAGES = {
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
# Stands for every value that is not needed: it ignores arguments, items and
# attributes.
OPAQUE: Any = object()


@dataclasses.dataclass
class Storage:
  """A block of values that tensors are views of.

  Attributes:
    kind: type of the values, a key of STORAGES.
    key: its name in the file.
    numel: number of values.
  """

  kind: str
  key: str
  numel: int


@dataclasses.dataclass
class Tensor:
  """A view of a storage.

  Attributes:
    storage: the storage.
    offset: position of the first value in the storage.
    size: the shape.
    stride: for each axis, the distance of neighbors in the storage.
  """

  storage: Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]


@dataclasses.dataclass
class Stateful:
  """A value that gets its attributes after it is made.

  Attributes:
    state: the attributes, as they are in the pickle.
  """

  state: Any = None


@dataclasses.dataclass
class _Dtype(Stateful):
  """The dtype of a numpy array: a letter and a number of bytes, as in 'f4'."""

  code: Any = None


@dataclasses.dataclass
class NumpyArray(Stateful):
  """A numpy array of numbers."""

  def array(self) -> np.ndarray:
    """The array; WeightsError if it is not one of numbers."""
    try:
      _, shape, dtype, is_fortran, data = self.state
      if not (isinstance(dtype, _Dtype) and isinstance(dtype.code, str)):
        raise ValueError('it has no dtype')
      if not re.fullmatch('[fiub][1248]', dtype.code):
        raise ValueError(f'dtype {dtype.code[:20]}')
      order = '='
      if isinstance(dtype.state, tuple) and len(dtype.state) > 1:
        order = '>' if dtype.state[1] == '>' else '<'
      if not isinstance(data, bytes):
        raise ValueError('its values are no bytes')
      values = np.frombuffer(data, np.dtype(order + dtype.code))
      shape = _counts(shape)
      return values.reshape(shape, order='F' if is_fortran is True else 'C')
    except (TypeError, ValueError) as e:
      raise WeightsError(f'it has a numpy array that is damaged ({e})') from e


@dataclasses.dataclass(frozen=True)
class Function:
  """A function that a pickle may call."""

  call: Callable[..., Any]


def _counts(values: Any) -> tuple[int, ...]:
  """The axes of an array, of which numpy allows 64."""
  if isinstance(values, list | tuple) and len(values) <= 64:
    if all(type(n) is int and 0 <= n < 2**62 for n in values):
      return tuple(values)
  raise WeightsError('it has a tensor with an impossible layout')


def _tensor(storage=None, offset=None, size=None, stride=None, *_):
  sizes, strides = _counts(size), _counts(stride)
  if not isinstance(storage, Storage) or len(sizes) != len(strides):
    raise WeightsError('it has a tensor with an impossible layout')
  return Tensor(storage, _counts([offset])[0], sizes, strides)


def _parameter(data=None, *_):
  if not isinstance(data, Tensor):
    raise ValueError('a parameter is not a tensor')
  return data


def _subclass(rebuild=None, _=None, arguments=(), *__):
  """A tensor of a subclass, such as a parameter, as a plain tensor."""
  if rebuild not in (_TENSOR, _PARAMETER) or not isinstance(arguments, tuple):
    raise WeightsError('it has a tensor of an unknown class')
  return rebuild.call(*arguments[:8])


def _dictionary(*arguments):
  """The dictionary of a defaultdict or Counter."""
  values = arguments[-1] if arguments else None
  return values if isinstance(values, dict) else {}


def _encode(text=None, encoding='latin1', *_):
  """The bytes that Python 3 writes as text in the old protocol of pickles."""
  if not isinstance(text, str) or encoding not in ('latin1', 'utf-8'):
    raise WeightsError('it has bytes in an unknown encoding')
  return text.encode(encoding)


def _from_buffer(data=b'', dtype=None, shape=(), order='C', *_):
  """A numpy array, as protocol 5 of pickles has it."""
  data = bytes(data) if isinstance(data, bytes | bytearray) else data
  return NumpyArray((None, shape, dtype, order == 'F', data))


_TENSOR, _PARAMETER = Function(_tensor), Function(_parameter)
_ARRAY = Function(lambda *_: NumpyArray())
_DICTIONARY = Function(_dictionary)
FUNCTIONS = {
  ('collections', 'defaultdict'): _DICTIONARY,
  ('collections', 'Counter'): _DICTIONARY,
  ('_codecs', 'encode'): Function(_encode),
  ('numpy', 'dtype'): Function(lambda code=None, *_: _Dtype(code=code)),
  ('numpy', 'ndarray'): _ARRAY,
  ('numpy.core.multiarray', '_reconstruct'): _ARRAY,
  ('numpy._core.multiarray', '_reconstruct'): _ARRAY,
  ('numpy.core.numeric', '_frombuffer'): Function(_from_buffer),
  ('numpy._core.numeric', '_frombuffer'): Function(_from_buffer),
  ('torch._tensor', '_rebuild_from_type_v2'): Function(_subclass),
  ('torch._utils', '_rebuild_tensor'): _TENSOR,
  ('torch._utils', '_rebuild_tensor_v2'): _TENSOR,
  ('torch._utils', '_rebuild_parameter'): _PARAMETER,
  ('torch._utils', '_rebuild_parameter_with_state'): _PARAMETER,
  ('torch', 'Size'): Function(lambda values=(), *_: _counts(values)),
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
# Functions that make values which training scripts store with the weights.
# Such a value is replaced by OPAQUE.
IGNORED = {
  ('argparse', 'Namespace'),
  ('types', 'SimpleNamespace'),
  ('collections', 'deque'),
  ('copyreg', '_reconstructor'),
  ('copy_reg', '_reconstructor'),
  *(
    ('datetime', name)
    for name in ('date', 'datetime', 'time', 'timedelta', 'timezone')
  ),
  ('decimal', 'Decimal'),
  ('fractions', 'Fraction'),
  ('uuid', 'UUID'),
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
    for name in (
      *(
        'dict',
        'list',
        'tuple',
        'set',
        'frozenset',
        'range',
        'slice',
        'object',
      ),
      *('int', 'float', 'complex', 'bool', 'str', 'bytes', 'bytearray'),
      *('xrange', 'long', 'unicode'),  # of Python 2
    )
  ),
}
