"""Reads TFRecord files of tf.train.Example without TensorFlow.

A record is 8 bytes of length (little endian), 4 bytes of checksum of the
length, the data, and 4 bytes of checksum of the data. A checksum is a CRC-32C,
rotated right by 15 bits, plus a constant.
"""

from collections.abc import Callable, Iterator
import os
import re
import struct
from typing import Any

from vit_jax import files

_HEAD, _FOOT = struct.Struct('<QI'), struct.Struct('<I')
_MOST_BYTES = 2**31  # protocol buffers cannot be larger
# x.tfrecord, x.tfrecord-00000-of-00010, and train-00000-of-00010.
_NAME = re.compile(r'.*\.tfrecords?(-\d+-of-\d+)?|[^.]*-\d+-of-\d+', re.DOTALL)


def is_tfrecord_name(name: str) -> bool:
  """Whether a file is taken for one of TFRecords, by its name."""
  return bool(_NAME.fullmatch(name.lower()))


def read_records(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
  """The records of a local or remote file, each with its first byte's offset.

  Raises:
    ValueError: the file is compressed, cut short or damaged, or the package
      that computes checksums is missing.
  """
  checksum = _checksum()
  size, offset = files.size(path), 0
  with files.as_path(path).open('rb') as file:
    while head := file.read(_HEAD.size):
      if len(head) < _HEAD.size:
        raise ValueError(f'{path} is cut short at byte {offset}')
      length, expected = _HEAD.unpack(head)
      if checksum(head[:8]) != expected:
        if offset == 0 and head.startswith((b'\x1f\x8b', b'\x78')):
          raise ValueError(
            f'{path} is compressed: its records cannot be read in any order. '
            'Decompress it first, e.g. with gunzip'
          )
        raise ValueError(
          f'{path}: damaged at byte {offset}, or no file of TFRecords'
        )
      start = offset + _HEAD.size
      if length >= _MOST_BYTES or start + length + _FOOT.size > size:
        raise ValueError(f'{path} is cut short at byte {offset}')
      data = file.read(length)
      if checksum(data) != _FOOT.unpack(file.read(_FOOT.size))[0]:
        raise ValueError(f'{path}: the record at byte {offset} is damaged')
      yield start, data
      offset = start + length + _FOOT.size


def parse_example(data: bytes) -> dict[str, list]:
  """The features of a serialized tf.train.Example.

  Returns:
    {name: its values}, of bytes, int or float.

  Raises:
    ValueError: it is no such message.
  """
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  proto: Any = tf_example_pb2  # its names are made at import
  example = proto.Example()
  try:
    example.ParseFromString(data)
  except message.DecodeError as e:
    raise ValueError(f'a record is no tf.train.Example: {e}') from e
  features = {}
  for name, feature in example.features.feature.items():
    kind = feature.WhichOneof('kind')
    features[name] = list(getattr(feature, kind).value) if kind else []
  return features


def _checksum() -> Callable[[bytes], int]:
  """The function that computes the checksum of bytes."""
  try:
    import google_crc32c  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise ValueError(
      'files of TFRecords need the package google-crc32c: '
      "pip install 'vit_jax[records]'"
    ) from e

  def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

  return masked
