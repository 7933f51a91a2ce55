"""Checksums of the arrays of a checkpoint step, and of its record.

A step stores the CRC-32 of every shard that was written, computed on the host
from the bytes that the writer got. Reading computes the checksums again, which
detects bits that changed in memory, during a transfer or on the disk. CRC-32
detects every error within 32 consecutive bits, and other errors with a
probability of 1 - 2^-32. Each process computes the checksums of the shards that
it writes.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import json
import os
from typing import Any

import jax
import numpy as np

from vit_jax import text

try:  # the same CRC-32 as that of zlib, several times as fast
  from isal.isal_zlib import crc32
except ImportError:
  from zlib import crc32

# {array: {'dtype', 'shape', 'shards': {'0:64,128:256': CRC-32}}}
Checksums = dict[str, dict[str, Any]]
ENTRY = 'checksums'  # key of the arrays' checksums in the record of a step
_THREADS = min(32, os.cpu_count() or 1)
_SEAL = 'crc32'  # key of the record's own checksum


def of_tree(tree: Any) -> Checksums:
  """Computes the checksums of the shards of a tree that this process writes.

  Args:
    tree: nested dicts of JAX or numpy arrays.
  """
  result: Checksums = {}
  work = []
  for name, x in _named(tree):
    shards = dict(_own_shards(x))
    for data in shards.values():
      if isinstance(data, jax.Array):
        data.copy_to_host_async()
    result[name] = {
      'dtype': str(x.dtype),
      'shape': list(x.shape),
      'shards': {},
    }
    work += [(name, key, data) for key, data in shards.items()]
  sums = _crcs([data for _, _, data in work])
  for (name, key, _), value in zip(work, sums, strict=True):
    result[name]['shards'][key] = value
  return result


def merge(of_processes: list[Checksums]) -> Checksums:
  """Merges the checksums of all processes."""
  merged: Checksums = {}
  for checksums in of_processes:
    for name, entry in checksums.items():
      known = merged.setdefault(name, {**entry, 'shards': {}})
      known['shards'].update(entry['shards'])
  return merged


def compare(tree: Any, stored: Checksums) -> tuple[list[str], list[str]]:
  """Compares arrays that were read with the checksums of their step.

  Args:
    tree: nested dicts of JAX or numpy arrays.
    stored: the checksums that `of_tree` computed when the step was written.

  Returns:
    The arrays that differ, each with the number of damaged shards; and the
    arrays that cannot be compared, because their dtype is another one, or this
    process has other shards of them than were written.
  """
  work, unchecked = [], []
  for name, x in _named(tree):
    entry = stored.get(name)
    shards = []
    if entry is not None and str(x.dtype) == entry['dtype']:
      shards = _cut(x, entry)
    if entry is None or not shards:
      unchecked.append(name)
    else:
      work += [(name, data, entry['shards'][key]) for key, data in shards]
  damaged: dict[str, int] = {}
  sums = _crcs([data for _, data, _ in work])
  for (name, _, expected), value in zip(work, sums, strict=True):
    if value != expected:
      damaged[name] = damaged.get(name, 0) + 1
  described = [
    f'{name} ({count} of {len(stored[name]["shards"])} shards)'
    for name, count in damaged.items()
  ]
  return described, unchecked


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
  """Adds to a record of JSON values its own checksum."""
  record = json.loads(json.dumps(record))
  return {**record, _SEAL: text.json_checksum(record)}


def is_sealed_correctly(record: Mapping[str, Any]) -> bool:
  """Whether a record has the values that `seal` got.

  It is True for records of vit_jax 0.1.0, which have no checksums.
  """
  if _SEAL not in record:
    return ENTRY not in record
  rest = {k: v for k, v in record.items() if k != _SEAL}
  return record[_SEAL] == text.json_checksum(rest)


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), x


def _own_shards(x: Any) -> Iterator[tuple[str, Any]]:
  """(index, data) of the shards whose first copy this process has."""
  if not isinstance(x, jax.Array):
    x = np.asarray(x)
    yield _whole(x.shape), x
    return
  if len(x.sharding.device_set) == 1:  # saves time with many small arrays
    if x.is_fully_addressable:
      yield _whole(x.shape), x
    return
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      yield _key(shard.index, x.shape), shard.data


def _cut(x: Any, entry: dict[str, Any]) -> list[tuple[str, Any]]:
  """(index, data) of an array, split into the shards that were written.

  Empty if this process does not have these shards.
  """
  if list(x.shape) != entry['shape']:
    return []
  own = {}
  if isinstance(x, jax.Array):
    own = {_key(s.index, x.shape): s.data for s in x.addressable_shards}
    if not entry['shards'].keys() <= own.keys() and x.is_fully_addressable:
      x, own = np.asarray(x), {}
  if isinstance(x, np.ndarray) or not isinstance(x, jax.Array):
    x = np.asarray(x)
    return [(key, x[_slices(key)]) for key in entry['shards']]
  shared = [(key, own[key]) for key in entry['shards'] if key in own]
  # Unless all data of this process is in these shards, damage could be missed.
  return shared if len(shared) == len(own) else []


def _key(index: Any, shape: tuple[int, ...]) -> str:
  bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
  return ','.join(f'{start}:{stop}' for start, stop, _ in bounds)


def _whole(shape: tuple[int, ...]) -> str:
  return ','.join(f'0:{n}' for n in shape)


def _slices(key: str) -> tuple[slice, ...]:
  bounds = (text.split(':') for text in key.split(',') if text)
  return tuple(slice(int(start), int(stop)) for start, stop in bounds)


def _crcs(arrays: Sequence[Any]) -> list[int]:
  """The CRC-32 of each array; several threads share the work."""
  count = min(len(arrays), _THREADS)
  if count < 2:
    return list(map(_crc, arrays))
  sums = [0] * len(arrays)
  # Each thread takes the next array when it is done, the largest first, so that
  # all of them end at about the same time.
  order = iter(sorted(range(len(arrays)), key=lambda i: -arrays[i].nbytes))

  def work(_: int) -> None:
    for i in order:
      sums[i] = _crc(arrays[i])

  # A task for each array would cost more than the sums of small arrays.
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    list(pool.map(work, range(count)))
  return sums


def _crc(data: Any) -> int:
  array = np.ascontiguousarray(np.asarray(data)).reshape(-1)
  return crc32(array.view(np.uint8).data)
