"""Reads the tensors of a pickle without running anything.

A pickle is a program for a small machine with a stack, and Python's own machine
can call any function. The machine here knows the few instructions that PyTorch
writes for tensors, containers and plain values. Instructions are decoded by
`pickletools` of the standard library.

The machine is also bounded, because a short program can otherwise take all
memory or never end. Nothing of it is recursive, keys of dictionaries are short
texts or numbers, whose hashes are cheap, and the instructions are counted.
"""

from collections.abc import Callable
import os
import pickletools
from typing import IO, Any, ClassVar, cast

from vit_jax import text
from vit_jax.weights.errors import WeightsError
from vit_jax.weights.pickled import (
  FUNCTIONS,
  IGNORED,
  OPAQUE,
  STORAGES,
  Function,
  Stateful,
  Storage,
)

# A checkpoint of 1,000 tensors and their optimizer state has 120,000.
MOST_INSTRUCTIONS = 1_000_000
_LONGEST_KEY = 1000  # characters
_LONGEST_LINE = 2**20  # bytes; texts of protocol 0 end with a new line
_LARGEST_INT = 2**128

_ORDERED_DICT = ('collections', 'OrderedDict')

_PLAIN = frozenset(
  'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING '
  'SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES '
  'SHORT_BINBYTES BINBYTES8 BYTEARRAY8'.split()
)


class _Bounded:
  """A file whose reads never ask for more bytes than it has.

  Python makes room for as many bytes as are asked for, before it reads them.
  """

  def __init__(self, file: IO[bytes]):
    self._file = file
    start = file.tell()
    self._left = file.seek(0, os.SEEK_END) - start
    file.seek(start)

  def read(self, n: int) -> bytes:
    data = self._file.read(min(n, self._left))
    self._left -= len(data)
    return data

  def readline(self) -> bytes:
    line = self._file.readline(_LONGEST_LINE)
    self._left -= len(line)
    return line


def read_pickle(
  file: IO[bytes], load_storage: Callable[[Storage], Storage] | None = None
) -> Any:
  """The value of the pickle at which a file stands.

  Args:
    file: open in binary mode; it stands behind the pickle afterwards.
    load_storage: gets each storage that the pickle names, and returns the one
      that its tensors shall have. None if there may be no storages.

  Returns:
    None, numbers, texts, bytes, lists, tuples, dictionaries and tensors; an
    object without properties for whatever else a training program saved.

  Raises:
    WeightsError: the pickle is damaged, or its loading would call a function
      that is not known.
  """
  machine = _Machine(load_storage)
  try:
    for opcode, argument, _ in pickletools.genops(cast(Any, _Bounded(file))):
      machine.step(opcode.name, argument)
    return machine.result()
  except WeightsError:
    raise
  except Exception as e:  # a damaged pickle can raise anything
    reason = text.shortened(e) or type(e).__name__
    raise WeightsError(f'its pickle is damaged or truncated ({reason})') from e


class _Machine:
  """The stack and memory of a pickle.

  Args:
    load_storage: see `read_pickle`.
  """

  def __init__(self, load_storage: Callable[[Storage], Storage] | None):
    self._load_storage = load_storage
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # the stacks below each mark
    self._memory: dict[int, Any] = {}
    self._steps = 0

  def result(self) -> Any:
    return self._stack.pop()

  def step(self, name: str, argument: Any) -> None:
    """Carries out one instruction."""
    self._count(1)
    instruction = self._INSTRUCTIONS.get(name)
    if instruction is not None:
      instruction(self)
    elif name in _PLAIN:
      large = type(argument) is int and abs(argument) >= _LARGEST_INT
      self._stack.append(OPAQUE if large else argument)
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
      self._memory[argument] = self._stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      self._stack.append(self._memory[argument])
    elif name == 'GLOBAL':
      module, _, function = argument.partition(' ')
      self._stack.append(self._function(module, function))
    elif name not in ('PROTO', 'FRAME', 'STOP'):
      raise WeightsError(
        f'its pickle has the instruction {name}, which PyTorch does not write '
        'for tensors'
      )

  def _count(self, steps: int) -> None:
    self._steps += steps
    if self._steps > MOST_INSTRUCTIONS:
      raise WeightsError(
        f'its pickle has more than {MOST_INSTRUCTIONS:,} instructions, more '
        'than any list of tensors needs. Save the state dict alone, without '
        'the state of the training, or as .safetensors'
      )

  def _function(self, module: Any, name: Any) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError('the name of a function is not a text')
    if (module, name) in FUNCTIONS:
      return FUNCTIONS[module, name]
    if (module, name) == _ORDERED_DICT:
      return Function(self._dictionary)
    if module in ('torch', 'torch.storage') and name in STORAGES:
      return name  # the type of a storage is only a key of STORAGES
    if (module, name) in IGNORED:
      return OPAQUE
    raise WeightsError(
      f'it needs code to be run: its pickle calls {module[:80]}.{name[:80]}. '
      'Only tensors and plain containers are read. If you trust the file, load '
      'it with the program that wrote it and save its state dict as '
      '.safetensors'
    )

  def _dictionary(self, pairs=(), *_) -> dict[Any, Any]:
    """A dictionary of pairs, as Python 2 wrote ordered dictionaries."""
    if not isinstance(pairs, list | tuple):
      raise ValueError('an ordered dictionary is not made of pairs')
    self._count(len(pairs))
    result: dict[Any, Any] = {}
    for pair in pairs:
      key, value = pair
      _set_item(result, key, value)
    return result

  def _above_mark(self) -> list[Any]:
    """Takes the values above the last mark from the stack, and the mark."""
    values = self._stack
    self._stack = self._below.pop()
    return values

  def _push(self, value: Any) -> None:
    self._stack.append(value)

  def _frozenset(self) -> None:
    self._above_mark()
    self._push(OPAQUE)

  def _mark(self) -> None:
    self._below.append(self._stack)
    self._stack = []

  def _append(self, values: list[Any]) -> None:
    target = self._stack[-1]
    if isinstance(target, list):
      target.extend(values)
    elif target is not OPAQUE:
      raise ValueError('values are appended to something that is no list')

  def _set_items(self, values: list[Any]) -> None:
    target = self._stack[-1]
    if not isinstance(target, dict):
      if target is OPAQUE:
        return
      raise ValueError('items are set in something that is no dictionary')
    for key, value in zip(values[::2], values[1::2], strict=True):
      _set_item(target, key, value)

  def _pop(self, count: int) -> list[Any]:
    """Takes the last values from the stack, in their order."""
    values = self._stack[-count:]
    if len(values) < count:
      raise ValueError('the stack is empty')
    del self._stack[-count:]
    return values

  def _dict(self) -> None:
    values = self._above_mark()
    self._stack.append({})
    self._set_items(values)

  def _discard(self) -> None:
    if self._stack:
      self._stack.pop()
    else:  # the last value is a mark
      self._above_mark()

  def _call(self, count: int) -> None:
    """Calls a function; its arguments are the second of `count` values."""
    function, arguments = self._pop(count)[:2]
    if function is OPAQUE:
      self._push(OPAQUE)
    elif isinstance(function, Function) and isinstance(arguments, tuple):
      self._stack.append(function.call(*arguments[:8]))
    else:
      raise ValueError('something is called that is no function')

  def _set_state(self) -> None:
    """Sets the attributes of numpy's values, and leaves out all others."""
    state, target = self._stack.pop(), self._stack[-1]
    if isinstance(target, Stateful):
      target.state = state
    elif target is not OPAQUE and not isinstance(target, dict):
      raise ValueError('attributes are set of something that has none')

  def _storage(self) -> None:
    identity = self._stack.pop()
    known = isinstance(identity, tuple) and len(identity) in (5, 6)
    values: Any = identity if known else [None] * 5
    what, kind, key, _, numel, *view = values
    if (
      self._load_storage is None
      or not all(isinstance(x, str) for x in (what, kind, key))
      or (what != 'storage' or kind not in STORAGES or len(key) > _LONGEST_KEY)
      or not (type(numel) is int and 0 <= numel < 2**62)
    ):
      raise WeightsError('it has an unknown kind of storage')
    if view and view[0] is not None:
      raise WeightsError('storages that are views of others are not supported')
    self._push(self._load_storage(Storage(kind, key, numel)))

  _INSTRUCTIONS: ClassVar[dict[str, Callable[['_Machine'], Any]]] = {
    'NONE': lambda m: m._push(None),
    'NEWTRUE': lambda m: m._push(True),
    'NEWFALSE': lambda m: m._push(False),
    'EMPTY_LIST': lambda m: m._push([]),
    'EMPTY_TUPLE': lambda m: m._push(()),
    'EMPTY_DICT': lambda m: m._push({}),
    'EMPTY_SET': lambda m: m._push(OPAQUE),
    'MARK': _mark,
    'TUPLE': lambda m: m._push(tuple(m._above_mark())),
    'TUPLE1': lambda m: m._push(tuple(m._pop(1))),
    'TUPLE2': lambda m: m._push(tuple(m._pop(2))),
    'TUPLE3': lambda m: m._push(tuple(m._pop(3))),
    'LIST': lambda m: m._push(m._above_mark()),
    'DICT': _dict,
    'FROZENSET': _frozenset,
    'APPEND': lambda m: m._append(m._pop(1)),
    'APPENDS': lambda m: m._append(m._above_mark()),
    'SETITEM': lambda m: m._set_items(m._pop(2)),
    'SETITEMS': lambda m: m._set_items(m._above_mark()),
    'ADDITEMS': lambda m: m._append(m._above_mark()),
    'POP': _discard,
    'POP_MARK': lambda m: m._above_mark(),
    'DUP': lambda m: m._push(m._stack[-1]),
    'MEMOIZE': lambda m: m._memory.update({len(m._memory): m._stack[-1]}),
    'STACK_GLOBAL': lambda m: m._push(m._function(*m._pop(2))),
    'REDUCE': lambda m: m._call(2),
    'NEWOBJ': lambda m: m._call(2),
    'NEWOBJ_EX': lambda m: m._call(3),
    'BUILD': _set_state,
    'BINPERSID': _storage,
  }


def _set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
  """Sets an item whose key is a text or number.

  Others are left out, because tensors have names, and because the hash of a
  tuple can take forever.
  """
  if isinstance(key, str) and len(key) > _LONGEST_KEY:
    raise WeightsError(
      f'it has a name of {len(key):,} characters; at most {_LONGEST_KEY:,} are '
      'read'
    )
  if isinstance(key, str | int | float):
    target[key] = value
