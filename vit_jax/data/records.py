"""The record of a packed data set, and the names of its files.

A packed split is `SPLIT-00000-of-00064.array_record` ... (ArrayRecord, one
record per group, uncompressed) and `SPLIT.packed.json`, which is written last:
without it the split does not exist. The layout of a record, little endian:

  offset  size  what
  0       1     version: 1, or 2 for a soft label
  1       2     number of labels, L
  3       2     bytes of the id, I
  5       4 L   labels, uint32
  5+4L    I     id, UTF-8
  5+4L+I  rest  the encoded image (JPEG, PNG or WebP)

In version 2 the labels are followed by their L probabilities, float32.
"""

import struct

VERSION = 1
SOFT_VERSION = 2
META_SUFFIX = '.packed.json'
# The file of the images of a split that were left out, one JSON object a line.
BAD_SUFFIX = '.bad.jsonl'
# The split that `vit-jax pseudo-label` writes.
PSEUDO_SPLIT = 'pseudo'
_HEAD = struct.Struct('<BHH')


def encode_record(
  image: bytes, labels: list[int] | dict[int, float], name: str
) -> bytes:
  """One example as a record; a dict {class: probability} is a soft label."""
  text = name.encode()[:0xFFFF]
  soft = isinstance(labels, dict)
  count = len(labels)
  return b''.join(
    (
      _HEAD.pack(SOFT_VERSION if soft else VERSION, count, len(text)),
      struct.pack(f'<{count}I', *labels),
      struct.pack(f'<{count}f', *labels.values()) if soft else b'',
      text,
      image,
    )
  )


def decode_record(
  record: bytes,
) -> tuple[bytes, list[int] | dict[int, float], str]:
  """The (image, labels, id) of a record, as they were encoded.

  Raises:
    ValueError: the record is of another version or cut short.
  """
  if len(record) < _HEAD.size or record[0] not in (VERSION, SOFT_VERSION):
    raise ValueError(
      f'not a record of version {VERSION} or {SOFT_VERSION}: '
      f'{record[:8]!r}. Was this file written by `vit-jax pack`?'
    )
  version, count, length = _HEAD.unpack_from(record)
  soft = version == SOFT_VERSION
  start = _HEAD.size + 4 * count * (1 + soft)
  if len(record) < start + length:
    raise ValueError(f'record cut short at {len(record)} bytes')
  labels = list(struct.unpack_from(f'<{count}I', record, _HEAD.size))
  if soft:
    labels = dict(
      zip(
        labels,
        struct.unpack_from(f'<{count}f', record, _HEAD.size + 4 * count),
        strict=True,
      )
    )
  end = start + length
  return record[end:], labels, record[start:end].decode(errors='replace')


def shard_name(split: str, shard: int, shards: int) -> str:
  """The file name of one of a split's shards, which count from 0."""
  return f'{split}-{shard:05d}-of-{shards:05d}.array_record'
