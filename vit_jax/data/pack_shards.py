"""Decides which example goes into which shard, and writes one shard.

`vit-jax pack` in one process and its Beam pipeline (pack_beam.py) both use
these functions, so that they write the same bytes. A shard depends on its
`ShardPlan` alone: any process can write it, at any time, and again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
from typing import Any
import zlib

import numpy as np

from vit_jax import files
from vit_jax.data import records
from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.identity import fingerprint
from vit_jax.data.listing import File
from vit_jax.data.pack_images import Prepared, prepare_image
from vit_jax.data.pack_inputs import Item

log = logging.getLogger(__name__)

EXAMPLES_PER_SHARD = 10_000  # the default number of shards follows from it
_POOL_CHUNK = 256  # at most so many prepared images wait to be written
_LISTED_BAD_EXAMPLES = 1000  # at most so many are named in the metadata

# The class numbers of an example, or {class: probability}.
ExampleLabels = list[int] | dict[int, float]


@dataclasses.dataclass(frozen=True)
class Storing:
  """How images are stored: the arguments of `pack` of these names."""

  short_side: int | None = None
  quality: int = 95
  max_pixels: int = MAX_PIXELS

  def __post_init__(self):
    if not 1 <= self.quality <= 100:
      raise ValueError(f'quality={self.quality}: must be in [1, 100]')


@dataclasses.dataclass(frozen=True)
class ShardPlan:
  """What a shard will hold.

  Attributes:
    name: of its file.
    examples: its images with their labels, in order.
    storing: how the images are stored.
  """

  name: str
  examples: Sequence[tuple[Item, ExampleLabels]]
  storing: Storing

  def to_json(self) -> dict[str, Any]:
    """The plan as JSON values; `from_json` reads them."""
    return {
      'name': self.name,
      'storing': dataclasses.asdict(self.storing),
      'examples': [
        [x.name, x.file.path, x.file.size, x.file.offset, labels]
        for x, labels in self.examples
      ],
    }

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'ShardPlan':
    """The plan of `to_json`."""
    return cls(
      value['name'],
      [
        (Item(File(name, path, size, offset), name), labels)
        for name, path, size, offset, labels in value['examples']
      ],
      Storing(**value['storing']),
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of all that the bytes of the shard depend on."""
    return fingerprint(self.to_json())


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard that is written.

  Attributes:
    name: of its file.
    size: in bytes.
    sha256: of the file.
    checksums: CRC-32 of each stored image in the order of the plan, None for
      images that were left out.
    image_sizes: the (height, width) that occur, as stored and upright.
    bad: {'id', 'reason'} of each image that was left out.
  """

  name: str
  size: int
  sha256: str
  checksums: list[int | None]
  image_sizes: list[list[int]]
  bad: list[dict[str, str]]


def plan_shards(
  split: str,
  items: Sequence[Item],
  labels: Sequence[ExampleLabels],
  *,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  storing: Storing,
) -> list[ShardPlan]:
  """Distributes the examples of a split among shards.

  Args:
    split: name of the split.
    items: the images; an image may occur several times.
    labels: of each image.
    shards: number of shards; None makes one per 10,000 images. Their numbers of
      examples differ by at most one.
    shuffle_seed: determines the order; None keeps that of `items`.
    storing: how images are stored.

  Raises:
    ValueError: `shards` is less than 1.
  """
  if shards is not None and shards < 1:
    raise ValueError(f'shards={shards}: must be at least 1')
  order = np.arange(len(items))
  if shuffle_seed is not None:
    rng = np.random.Generator(np.random.Philox(shuffle_seed))
    order = rng.permutation(len(items))
  shards = shards or -(-len(items) // EXAMPLES_PER_SHARD)
  bounds = [len(items) * i // shards for i in range(shards + 1)]
  return [
    ShardPlan(
      records.shard_name(split, k, shards),
      [(items[i], labels[i]) for i in order[bounds[k] : bounds[k + 1]]],
      storing,
    )
    for k in range(shards)
  ]


def write_shard(
  plan: ShardPlan,
  path: str | os.PathLike,
  pool: futures.Executor,
  report: Callable[[], None] = lambda: None,
) -> Shard:
  """Writes one shard.

  Args:
    plan: what it holds.
    path: where it is written.
    pool: reads, checks and encodes the images.
    report: called after each image.

  Raises:
    OSError: the file cannot be written.
  """
  from array_record.python import array_record_module  # pyright: ignore

  checksums: list[int | None] = []
  bad, sizes = [], set()
  prepare = functools.partial(prepare_image, **dataclasses.asdict(plan.storing))
  prepared = _ordered_map(pool, prepare, [item for item, _ in plan.examples])
  with files.staged(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      temporary, 'group_size:1,uncompressed'
    )
    try:
      for (item, labels), image in zip(plan.examples, prepared, strict=True):
        if image.reason:
          checksums.append(None)
          bad.append({'id': item.name, 'reason': image.reason})
          log.warning('left out: %s (%s)', item.name, image.reason)
        else:
          writer.write(records.encode_record(image.image, labels, item.name))
          checksums.append(zlib.crc32(image.image))
          sizes |= image.sizes
        report()
    finally:
      writer.close()
    size, digest = os.path.getsize(temporary), _sha256(temporary)
  return Shard(
    plan.name,
    size,
    digest,
    checksums,
    sorted(map(list, sizes)),
    bad,
  )


def is_intact(shard: Shard, path: str | os.PathLike) -> bool:
  """Whether a file is the shard as it was written, by its size and hash."""
  file = files.as_path(path)
  return (
    file.exists()
    and file.stat().length == shard.size
    and _sha256(path) == shard.sha256
  )


def describe_split(
  split: str,
  plans: Sequence[ShardPlan],
  shards: Sequence[Shard],
  classes: dict[str, Any],
) -> dict[str, Any]:
  """The metadata of a split whose shards are written.

  Args:
    split: its name.
    plans, shards: in order.
    classes: 'num_classes', 'class_names' and 'multi_label'.

  Raises:
    ValueError: no image can be decoded.
  """
  per_class = np.zeros(classes['num_classes'], np.int64)
  described: list[dict[str, Any]] = []
  digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode())
  soft = False
  for plan, shard in zip(plans, shards, strict=True):
    kept = []
    for (item, labels), checksum in zip(
      plan.examples, shard.checksums, strict=True
    ):
      soft |= isinstance(labels, dict)
      if checksum is None:
        continue
      digest.update(f'{item.name} {labels} {checksum}\n'.encode())
      kept.append((item.name, labels, checksum))
      # A soft label counts for its most probable class.
      counted = (
        max(labels, key=labels.__getitem__)
        if isinstance(labels, dict)
        else labels
      )
      per_class[counted] += 1
    samples = [kept[i] for i in records.sample_positions(len(kept))]
    described.append(
      {
        'file': shard.name,
        'count': len(kept),
        'samples': [records.describe_example(*sample) for sample in samples],
      }
    )
  count = sum(shard['count'] for shard in described)
  bad = [x for shard in shards for x in shard.bad]
  if not count:
    raise ValueError(
      f'none of the {len(bad)} images can be decoded; the first: '
      f'{bad[0]["id"]}: {bad[0]["reason"]}'
    )
  sizes = {tuple(size) for shard in shards for size in shard.image_sizes}
  return {
    'format': 'vit_jax packed images',
    'version': records.SOFT_VERSION if soft else records.VERSION,
    'split': split,
    'num_examples': count,
    **classes,
    'image_shape': list(*sizes) if len(sizes) == 1 else None,
    'shards': described,
    'examples_per_class': per_class.tolist(),
    'bad': len(bad),
    'bad_examples': bad[:_LISTED_BAD_EXAMPLES],
    'fingerprint': digest.hexdigest()[:16],
  }


def _sha256(path: str | os.PathLike) -> str:
  with files.as_path(path).open('rb') as file:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def _ordered_map(
  pool: futures.Executor, function: Callable, items: list
) -> Iterator[Prepared]:
  """Maps in a pool, in order; a limited number of results is kept waiting."""
  for start in range(0, len(items), _POOL_CHUNK):
    yield from pool.map(function, items[start : start + _POOL_CHUNK])
