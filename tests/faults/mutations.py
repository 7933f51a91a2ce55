"""Damages of single files, drawn by a seed."""

import os
import pathlib
import random
import struct

_EXTREMES = (0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
_LONG_EXTREMES = (*_EXTREMES, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
_TEXTS = (b'1000000000000', b'-1', b'NaN', b'null', b'[' * 5000, b'"', b'\xff')


def mutate(rng: random.Random, path: pathlib.Path) -> str:
  """Damages a file, or one file of a directory; returns what was done."""
  if path.is_dir():
    files = sorted(p for p in path.rglob('*') if p.is_file())
    path = rng.choice(files)
    if rng.random() < 0.15:
      return _replace(rng, path)
  elif rng.random() < 0.04:
    return _replace(rng, path)
  data = path.read_bytes()
  done = []
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    kind = rng.choice(sorted(_KINDS))
    data = _KINDS[kind](rng, data)
    done.append(kind)
  path.write_bytes(data)
  return ', '.join(done)


def _replace(rng: random.Random, path: pathlib.Path) -> str:
  """Puts something else than a file under its name."""
  kind = rng.choice(('pipe', 'folder', 'link to itself', 'device', 'nothing'))
  path.unlink()
  if kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  elif kind == 'link to itself':
    path.symlink_to(path.name)
  elif kind == 'device':
    path.symlink_to('/dev/zero')
  return kind


def _flip(rng: random.Random, data: bytes) -> bytes:
  changed = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
  return data[: rng.randrange(len(data) + 1)]


def _chunk(rng: random.Random, data: bytes) -> tuple[int, int]:
  start = rng.randrange(len(data) + 1)
  return start, min(len(data), start + rng.choice((1, 4, 32, 512)))


def _double(rng: random.Random, data: bytes) -> bytes:
  start, stop = _chunk(rng, data)
  return data[:stop] + data[start:stop] * rng.choice((1, 3)) + data[stop:]


def _remove(rng: random.Random, data: bytes) -> bytes:
  start, stop = _chunk(rng, data)
  return data[:start] + data[stop:]


def _blank(rng: random.Random, data: bytes) -> bytes:
  start, stop = _chunk(rng, data)
  return (
    data[:start] + rng.choice((b'\0', b'\xff')) * (stop - start) + (data[stop:])
  )


def _length(rng: random.Random, data: bytes) -> bytes:
  """Writes an extreme number; most lengths are near the start of a file."""
  code = rng.choice('BHIQ')
  limit = 2 ** (8 * struct.calcsize(code))
  values = [x for x in _LONG_EXTREMES if x < limit]
  field = struct.pack(rng.choice('<>') + code, rng.choice(values))
  near = min(len(data), rng.choice((64, 512, len(data))))
  start = rng.randrange(near + 1)
  return data[:start] + field + data[start + len(field) :]


def _write(rng: random.Random, data: bytes) -> bytes:
  start = rng.randrange(len(data) + 1)
  return data[:start] + rng.choice(_TEXTS) + data[start + rng.randrange(3) :]


_KINDS = {
  'bits flipped': _flip,
  'cut': _cut,
  'bytes doubled': _double,
  'bytes removed': _remove,
  'bytes blanked': _blank,
  'length edited': _length,
  'text written': _write,
}
