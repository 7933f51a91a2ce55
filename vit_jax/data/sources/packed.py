"""Data sets in packed shards, as `vit-jax pack` writes them."""

import dataclasses
import json
from typing import Any

from vit_jax.data import records
from vit_jax.data.sources.source import Source, checked_index, data_directory
from vit_jax.data.splits import pick_split


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


class Packed(Source):
  """ArrayRecord shards with a metadata file, written by `vit-jax pack`.

  Args:
    split: name of a packed split, or an alias (see `splits.SPLIT_ALIASES`).
    data_dir: the directory of the shards.

  Raises:
    ValueError: no packed split of this name, one of another version, or one
      that lacks shards.
  """

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
    meta = json.loads((root / (chosen + records.META_SUFFIX)).read_text())
    if meta.get('version') not in (records.VERSION, records.SOFT_VERSION):
      raise ValueError(
        f'{root}/{chosen}{records.META_SUFFIX} has version '
        f'{meta.get("version")}; this version of vit_jax reads '
        f'{records.VERSION} and {records.SOFT_VERSION}. Pack the images again'
      )
    missing = [
      s['file'] for s in meta['shards'] if not (root / s['file']).exists()
    ]
    if missing:
      raise ValueError(
        f'{root} lacks {len(missing)} of {len(meta["shards"])} shards '
        f'({", ".join(missing[:3])}): copy them, or pack again'
      )
    self._shards = [
      _Shard(str(root / s['file']), 0, s['count'], s['count'])
      for s in meta['shards']
      if s['count']
    ]
    self._records: Any = None
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
    if self._records is None:
      # Not opened in __init__: a source is pickled for worker processes, and
      # an open reader cannot be.
      from array_record.python import array_record_data_source

      self._records = array_record_data_source.ArrayRecordDataSource(
        self._shards  # pyright: ignore[reportArgumentType]
      )
    image, labels, name = records.decode_record(
      self._records[checked_index(i, self._length)]
    )
    return {
      'image': image,
      'id': name,
      'label': labels if self.multi_label else labels[0],
    }

  def __getstate__(self):
    return {**self.__dict__, '_records': None}
