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

import json
import os
import struct
from typing import Any

from vit_jax import files, text
from vit_jax.data.identity import fingerprint
from vit_jax.weights.metadata import MOST_CLASSES

VERSION = 1
SOFT_VERSION = 2
META_SUFFIX = '.packed.json'
# The file of the images of a split that were left out, one JSON object a line.
BAD_SUFFIX = '.bad.jsonl'
_CHECKSUM = 'checksum'  # the key of the metadata that has their checksum
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


def seal_metadata(meta: dict[str, Any]) -> dict[str, Any]:
  """Adds to the metadata of a packed split its own checksum."""
  plain = json.loads(json.dumps(meta))
  return {**plain, _CHECKSUM: text.json_checksum(plain)}


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """The metadata of a packed split.

  Raises:
    ValueError: the file cannot be read, is damaged, or claims what cannot be.
  """
  try:
    meta = json.loads(files.read_text(path))
    if not isinstance(meta, dict):
      raise ValueError('it is no JSON object')
    if meta.get('version') not in (VERSION, SOFT_VERSION):
      raise ValueError(
        f'it has version {meta.get("version")!r}; this version of vit_jax '
        f'reads {VERSION} and {SOFT_VERSION}'
      )
    expected = meta.pop(_CHECKSUM, None)
    if expected is not None and expected != text.json_checksum(meta):
      raise ValueError('its values are not those that were written')
    _check_metadata(meta)
  except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
    reason = f'it lacks {e}' if isinstance(e, KeyError) else e
    raise ValueError(
      f'{path} is damaged or cannot be read ({reason}): copy it again, or pack '
      'the images again'
    ) from e
  return meta


def _check_metadata(meta: dict[str, Any]) -> None:
  """Raises ValueError, TypeError or KeyError for values that cannot be."""
  count, names = meta['num_classes'], meta['class_names']
  if type(count) is not int or not 0 < count <= MOST_CLASSES:
    raise ValueError(
      f'num_classes is {count!r}; allowed: 1 to {MOST_CLASSES:,}'
    )
  if names is not None and (
    len(names) != count or not all(isinstance(name, str) for name in names)
  ):
    raise ValueError(f'class_names are not {count:,} texts')
  sizes = meta['image_shape']
  if sizes is not None and not (
    len(sizes) == 2 and all(type(n) is int and 0 < n < 2**20 for n in sizes)
  ):
    raise ValueError(f'image_shape is {sizes!r}')
  for shard in meta['shards']:
    if os.path.basename(shard['file']) != shard['file']:
      raise ValueError(f'the shard {shard["file"]!r} is in another directory')
    if type(shard['count']) is not int or shard['count'] < 0:
      raise ValueError(f'{shard["file"]} has {shard["count"]!r} records')
  total = sum(shard['count'] for shard in meta['shards'])
  if meta['num_examples'] != total:
    raise ValueError(
      f'num_examples is {meta["num_examples"]!r}, and the shards have {total:,}'
    )
  if not isinstance(meta['multi_label'], bool):
    raise ValueError(f'multi_label is {meta["multi_label"]!r}')
  if not isinstance(meta['fingerprint'], str):
    raise ValueError(f'the fingerprint is {meta["fingerprint"]!r}')


def sample_positions(count: int) -> list[int]:
  """The records of a shard that the metadata describes, of `count` records."""
  return sorted({0, count // 3, 2 * count // 3, count - 1}) if count else []


def describe_example(
  name: str, labels: list[int] | dict[int, float], checksum: int
) -> str:
  """A hash of the id and labels of a record and the CRC-32 of its image.

  The metadata has it for a few records of each shard, so that a shard of
  another data set, or with other labels, is noticed.
  """
  return fingerprint(name, sorted(labels), checksum)


def shard_name(split: str, shard: int, shards: int) -> str:
  """The file name of one of a split's shards, which count from 0."""
  return f'{split}-{shard:05d}-of-{shards:05d}.array_record'
