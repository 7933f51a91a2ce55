"""Reads single records of ArrayRecord files, local ones and in buckets.

ArrayRecord reads gs:// by itself, but asks for everything from a record to the
end of the file and then drops the connection: of a shard of 15 MB, each read of
a record of 5 kB brought 1 to 4 MB. Here a read of a record in a bucket is one
request for exactly its bytes.

The file format is Riegeli's (github.com/google/riegeli, doc/
riegeli_records_file_format.md) with the footer of ArrayRecord: blocks of 64 kB,
each with a header of 24 bytes, through which chunks run; a chunk is a header of
40 bytes and its data. With 'group_size:1,uncompressed', as all files of this
project are written, a chunk holds one record as it is. The last block points to
a chunk with the offsets of all others.
"""

from collections.abc import Sequence
import itertools
import os
import struct
from typing import Any

import numpy as np

from vit_jax import files

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40
_MAGIC = 0x71930E704FDAE05E


class ShardError(ValueError):
  """A file is not an ArrayRecord file of single uncompressed records."""


def open_shard(path: str, instruction: Any = None) -> Sequence[bytes]:
  """The records of a file, each of which is read when it is asked for.

  Args:
    path: local or remote file.
    instruction: what ArrayRecord takes in place of a local path, to know the
      number of records without opening the file.

  Raises:
    ShardError: a remote file has another format.
    ConnectionError: it cannot be read. Its records raise this as well, so that
      a network that fails is not taken for damaged records.
  """
  if files.is_remote(path):
    return RemoteShard(path)
  from array_record.python import array_record_data_source

  source: Any = array_record_data_source
  return source.ArrayRecordDataSource([instruction or path])


def open_shards(paths: Sequence[str]) -> Sequence[bytes]:
  """The records of several files, one after the other, as `open_shard`."""
  if any(map(files.is_remote, paths)):
    return _Chain([RemoteShard(path) for path in paths])
  from array_record.python import array_record_data_source

  source: Any = array_record_data_source
  return source.ArrayRecordDataSource(list(paths))


class _Chain(Sequence[bytes]):
  """Several sequences of records as one."""

  def __init__(self, shards: Sequence[Sequence[bytes]]):
    self._shards, self._ends = shards, np.cumsum([len(x) for x in shards])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: Any) -> bytes:
    k = int(np.searchsorted(self._ends, i, side='right'))
    return self._shards[k][int(i) - int(self._ends[k] - len(self._shards[k]))]


class RemoteShard(Sequence[bytes]):
  """The records of an ArrayRecord file in a bucket.

  Opening it takes three requests, and each record one.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = str(files.as_path(path))
    size = files.size(self._path)
    end = size - _BLOCK
    footer = self._footer_offset(_Bytes(self._read(end, size), end), end)
    offsets = self._offsets(_Bytes(self._read(footer, end), footer), footer)
    # Record i is in the bytes from offset i to offset i + 1.
    self._offsets_and_end = np.array([*offsets, footer], np.int64)

  def __len__(self) -> int:
    return len(self._offsets_and_end) - 1

  def __getitem__(self, i: Any) -> bytes:
    if not 0 <= i < len(self):
      raise IndexError(f'{self._path} has {len(self)} records, none is {i}')
    start, stop = map(int, self._offsets_and_end[i : i + 2])
    return self._values(_Bytes(self._read(start, stop), start), start)[-1]

  def _read(self, start: int, stop: int) -> bytes:
    if start < 0 or stop <= start:
      raise self._error('it is too short')
    try:
      data = files.read_range(self._path, start, stop)
    except Exception as e:
      raise ConnectionError(f'{self._path} cannot be read: {e}') from e
    if len(data) != stop - start:
      raise self._error(f'{len(data)} of {stop - start} bytes came')
    return data

  def _error(self, reason: str) -> ShardError:
    return ShardError(f'{self._path} is no shard of vit_jax: {reason}')

  def _footer_offset(self, last: '_Bytes', end: int) -> int:
    """Where the chunk of offsets begins, from the last block."""
    postscript = self._values(last, end)[0]
    fields = _fields(postscript)
    if fields.get(2) != _MAGIC or not 0 < fields.get(1, 0) < end:
      raise self._error('its end is not that of ArrayRecord')
    return fields[1]

  def _offsets(self, chunk: '_Bytes', footer: int) -> list[int]:
    """The offsets of all records, from the chunk of offsets."""
    _, *entries = self._values(chunk, footer)
    fields = [_fields(entry) for entry in entries]
    if any(entry.get(3) != 1 for entry in fields):
      raise self._error('it has groups of several records')
    return [entry.get(1, 0) for entry in fields]

  def _values(self, data: '_Bytes', offset: int) -> list[bytes]:
    """The values of the chunk at an offset of the file."""
    header = data.take(offset, _CHUNK_HEADER)
    (size,) = struct.unpack_from('<Q', header, 8)
    kind, count = header[24], int.from_bytes(header[25:32], 'little')
    content = data.take(offset, _CHUNK_HEADER + size)[_CHUNK_HEADER:]
    # A simple chunk ('r') begins with its compression (0 for none) and the
    # sizes of its values.
    if kind != ord('r') or content[:1] != b'\0' or not count:
      raise self._error('it is compressed')
    length, position = _varint(content, 1)
    sizes, end = [], position + length
    while position < end:
      value, position = _varint(content, position)
      sizes.append(value)
    if len(sizes) != count or end + sum(sizes) != len(content):
      raise self._error('the sizes of its records do not fit')
    bounds = np.cumsum([end, *sizes])
    return [content[a:b] for a, b in itertools.pairwise(bounds)]


class _Bytes:
  """Bytes of a file from `start` on, without the headers of its blocks."""

  def __init__(self, data: bytes, start: int):
    self._data, self._start = data, start

  def take(self, offset: int, count: int) -> bytes:
    """`count` bytes of chunks from an offset of the file.

    Raises:
      ShardError: they reach past the end.
    """
    pieces = []
    while count > 0:
      if offset % _BLOCK < _BLOCK_HEADER:
        offset += _BLOCK_HEADER - offset % _BLOCK
      here = min(count, _BLOCK - offset % _BLOCK)
      begin = offset - self._start
      piece = self._data[begin : begin + here]
      if len(piece) < here:
        raise ShardError('a record reaches past its end')
      pieces.append(piece)
      offset, count = offset + here, count - here
    return b''.join(pieces)


def _varint(data: bytes, position: int) -> tuple[int, int]:
  """An integer in groups of seven bits, and the position behind it."""
  value = shift = 0
  while True:
    byte = data[position]
    value |= (byte & 0x7F) << shift
    position, shift = position + 1, shift + 7
    if byte < 0x80:
      return value, position


def _fields(message: bytes) -> dict[int, int]:
  """The integer fields of a protocol buffer by their numbers."""
  fields, position = {}, 0
  while position < len(message):
    key, position = _varint(message, position)
    if key & 7 == 1:
      fields[key >> 3] = int.from_bytes(
        message[position : position + 8], 'little'
      )
      position += 8
    else:
      fields[key >> 3], position = _varint(message, position)
  return fields
