"""Data sets in packed shards, as `vit-jax pack` writes them."""

import bisect
from collections.abc import Sequence
import dataclasses
import itertools
import os
from typing import Any
import zlib

from vit_jax import files
from vit_jax.data import records
from vit_jax.data.decode import BadImage
from vit_jax.data.shard_reader import open_shard
from vit_jax.data.sources.source import Source, checked_index, data_directory
from vit_jax.data.splits import pick_split
from vit_jax.files import is_remote


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A file and its number of records, for ArrayRecordDataSource.

  ArrayRecordDataSource would otherwise open every file at once to count its
  records. Given the count, it opens a file when a record of it is first read.
  """

  filename: str
  skip: int
  take: int
  examples_in_shard: int
  samples: Sequence[str] = ()  # of `records.describe_example`


class OtherShard(ValueError):
  """A shard that does not belong to the metadata."""


class Packed(Source):
  """ArrayRecord shards with a metadata file, written by `vit-jax pack`.

  Args:
    split: name of a packed split, or an alias (see `splits.SPLIT_ALIASES`).
    data_dir: the directory of the shards.

  Raises:
    ValueError: no packed split of this name, one of another version, or one
      that lacks shards.
  """

  checked = True

  def __init__(self, split: str, data_dir: str):
    root = data_directory(data_dir, 'packed')
    packed = sorted(
      p.name[: -len(records.META_SUFFIX)]
      for p in root.iterdir()
      if p.name.endswith(records.META_SUFFIX)
    )
    if not packed:
      raise ValueError(
        f'{root} has no *{records.META_SUFFIX}: it is not a packed data '
        'set, or its packing did not finish. Write it with `vit-jax pack`.'
      )
    chosen = pick_split(split, packed, f'packed data in {root}')
    meta = records.read_metadata(root / (chosen + records.META_SUFFIX))
    missing = [
      s['file'] for s in meta['shards'] if not (root / s['file']).exists()
    ]
    if missing:
      raise ValueError(
        f'{root} lacks {len(missing)} of {len(meta["shards"])} shards '
        f'({", ".join(missing[:3])}): copy them, or pack again'
      )
    self._shards = [
      _Shard(
        str(root / s['file']), 0, s['count'], s['count'], s.get('samples', ())
      )
      for s in meta['shards']
      if s['count']
    ]
    self._ends = list(itertools.accumulate(s.take for s in self._shards))
    # Readers by shard; each is opened when its first record is read.
    self._readers: dict[int, Any] = {}
    self._length = meta['num_examples']
    self.num_classes = meta['num_classes']
    self.class_names = meta['class_names']
    self.multi_label = meta['multi_label']
    self.image_shape = (
      tuple(meta['image_shape']) if meta['image_shape'] else None
    )
    self.name = f'packed {root} ({chosen})'
    self.fingerprint = meta['fingerprint']

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    """One example.

    Raises:
      BadImage: the record or its shard is damaged, or its label is no class.
      OtherShard: the shard is of another data set, or has other labels.
      ConnectionError: a bucket does not answer.
    """
    shard, record = self._locate(i)
    try:
      data = self._reader(shard)[record]
      image, labels, name = records.decode_record(data)
    except (ConnectionError, OtherShard):
      raise
    except Exception as e:  # the readers raise many kinds for damaged files
      reason = str(e).split('\n')[0] or type(e).__name__
      raise BadImage(f'damaged record: {reason}') from e
    wrong = [label for label in labels if label >= self.num_classes]
    if wrong or (not labels and not self.multi_label):
      raise BadImage(
        f'label {wrong[0] if wrong else None} is none of the '
        f'{self.num_classes} classes 0..{self.num_classes - 1}'
      )
    return {
      'image': image,
      'id': name,
      'label': labels if self.multi_label else labels[0],
    }

  def describe(self, i: int) -> str:
    shard, record = self._locate(i)
    return f'{self._shards[shard].filename} record {record}'

  def _locate(self, i: int) -> tuple[int, int]:
    """The shard of example i and the number of its record there."""
    i = checked_index(i, self._length)
    shard = bisect.bisect_right(self._ends, i)
    return shard, i - (self._ends[shard] - self._shards[shard].take)

  def _reader(self, shard: int) -> Any:
    if shard not in self._readers:
      path = self._shards[shard].filename
      files.check_regular(path)
      if not is_remote(path) and not os.path.getsize(path):
        raise ValueError('the shard is empty')
      reader = open_shard(path, self._shards[shard])
      _check_samples(self._shards[shard], reader)
      self._readers[shard] = reader
    return self._readers[shard]

  def __getstate__(self):
    return {**self.__dict__, '_readers': {}}  # readers do not pickle


def _check_samples(shard: _Shard, reader: Any) -> None:
  """Raises OtherShard unless a few records are those of the metadata.

  Shards of several data sets have the same names, and those of a data set that
  was labeled again even have the same sizes.
  """
  positions = records.sample_positions(shard.take)
  for i, expected in zip(positions, shard.samples, strict=False):
    try:
      image, labels, name = records.decode_record(reader[i])
    except ConnectionError:
      raise
    except Exception:  # damaged, which is said when the record is read
      continue
    described = records.describe_example(name, labels, zlib.crc32(image))
    if described != expected:
      raise OtherShard(
        f'{shard.filename} is not the shard that its metadata was written for: '
        f'its record {i} is {name!r} of class {", ".join(map(str, labels))}. '
        'Copy all files of the packed data from one directory, or pack again'
      )
