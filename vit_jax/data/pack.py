"""Packs images into ArrayRecord shards: the engine of `vit-jax pack`.

It writes a shuffled copy of a large data set as a few large files, which the
source 'packed' reads. The inputs may be

  a folder   DIR/class/x.jpg, or DIR/{train,val,test}/class/x.jpg, of which
             every split is packed
  tar files  of such a folder, which are read as the folder is (layout.py); one
             flat tar per class, named after the class (ImageNet-21k); or a tar
             of such tars (ImageNet)
  a folder or tar files with a file of labels (labels.py)

records.py describes the files that are written. They get their final names when
all of them are complete, the metadata file last.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import functools
import hashlib
import json
import logging
import os
from typing import Any
import zlib

from etils import epath
import numpy as np

from vit_jax import files
from vit_jax.data import records
from vit_jax.data.decode import (
  MAX_PIXELS,
)
from vit_jax.data.labels import read_labels
from vit_jax.data.pack_images import Prepared, prepare_image
from vit_jax.data.pack_inputs import (
  Item,
  number_labels,
  read_inputs,
)

log = logging.getLogger(__name__)

EXAMPLES_PER_SHARD = 10_000  # the default number of shards follows from it
_POOL_CHUNK = 256  # at most so many prepared images wait to be written
_LISTED_BAD_EXAMPLES = 1000  # at most so many are named in the metadata


def pack(
  inputs: str | os.PathLike | Sequence[str | os.PathLike],
  out_dir: str | os.PathLike,
  *,
  split: str | None = None,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  short_side: int | None = None,
  quality: int = 95,
  labels_file: str | os.PathLike | None = None,
  label_columns: dict[str, str] | None = None,
  flat: bool = False,
  max_pixels: int = MAX_PIXELS,
  threads: int | None = None,
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict]:
  """Writes the shards and metadata of one or more splits.

  Args:
    inputs: a directory, a tar file, or several of either.
    out_dir: directory to write to; created if needed.
    split: the name of the split; by default 'train', or those of a directory
      that has train/ beside val/, validation/ or test/. Other splits take the
      class numbers of the 'train' that is in `out_dir` already.
    shards: number of files of a split; by default one per 10,000 images.
    shuffle_seed: determines the order of the images; None keeps the order of
      their names.
    short_side: shrink images whose shorter side has more pixels to this one,
      and encode them again as JPEG.
    quality: quality of that JPEG, 1 to 100.
    labels_file: JSON or CSV with the labels, see the module docstring.
    label_columns: what is declared of that file: 'file_column', 'label_column'
      and 'kind' of `labels.read_labels`.
    flat: take every folder for a class, also one named 'train' or 'test'.
    max_pixels: larger images are left out as bad.
    threads: number of threads that read, check and encode; by default one for
      each core.
    overwrite: replace a split that `out_dir` already has.
    progress: called with (images done, images in the split).

  Returns:
    {split: metadata}. `metadata['bad']` counts the images that were left out
    because they cannot be decoded, and `metadata['bad_examples']` names them
    with the reason.

  Raises:
    ValueError: there is nothing to pack, a class or label does not fit, or a
      split exists already; the message says what to change.
  """
  paths = _existing(inputs)
  if shards is not None and shards < 1:
    raise ValueError(f'shards={shards}: must be at least 1')
  if not 1 <= quality <= 100:
    raise ValueError(f'quality={quality}: must be in [1, 100]')
  out = files.as_path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  options: dict[str, Any] = dict(
    shards=shards,
    shuffle_seed=shuffle_seed,
    short_side=short_side,
    quality=quality,
    max_pixels=max_pixels,
    threads=threads or os.cpu_count() or 1,
    overwrite=overwrite,
    progress=progress,
  )
  labels = None
  if labels_file:
    labels = read_labels(labels_file, **(label_columns or {}))
  splits = read_inputs(paths, labeled=bool(labels), split=split, flat=flat)
  for name in splits:  # all splits are checked before the first is written
    _refuse_existing(out, name, overwrite)
  result = {}
  for name, items in splits.items():
    of_train = classes_of_train(name, out)
    numbers, classes = number_labels(items, labels, of_train)
    result[name] = write_split(name, out, items, numbers, classes, **options)
  return result


def _existing(
  inputs: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[epath.Path]:
  """The inputs as paths; ValueError if there are none or one is missing."""
  paths = [
    files.as_path(p)
    for p in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
  ]
  missing = [str(p) for p in paths if not p.exists()]
  if missing or not paths:
    raise ValueError(
      'nothing to pack: '
      + (
        f'{", ".join(missing)} does not exist' if missing else 'no input given'
      )
      + '. Give image folders or tar files'
    )
  return paths


def write_split(
  split: str,
  out: epath.Path,
  items: list[Item],
  numbers: list,
  classes: dict,
  *,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  short_side: int | None = None,
  quality: int = 95,
  max_pixels: int = MAX_PIXELS,
  threads: int = 1,
  overwrite: bool = False,
  progress: Callable | None = None,
) -> dict:
  """Writes images with known labels as one split.

  Args:
    split: name of the split.
    out: directory to write to.
    items: the images; an image may occur several times.
    numbers: for each item a list of class numbers, or {class: probability}.
    classes: 'num_classes', 'class_names' and 'multi_label' for the metadata.
    shards, ..., progress: see `pack`.

  Returns:
    The metadata.

  Raises:
    ValueError: the split exists, or no image can be decoded.
  """
  _refuse_existing(out, split, overwrite)
  if shuffle_seed is not None:
    rng = np.random.Generator(np.random.Philox(shuffle_seed))
    order = rng.permutation(len(items))
    items = [items[i] for i in order]
    numbers = [numbers[i] for i in order]
  shards = shards or -(-len(items) // EXAMPLES_PER_SHARD)
  names = [records.shard_name(split, i, shards) for i in range(shards)]
  unpublished = [_unpublished(out, name) for name in names]
  bounds = [len(items) * i // shards for i in range(shards + 1)]
  summary = _Summary(classes, len(items), progress)
  prepare = functools.partial(
    prepare_image, short_side=short_side, quality=quality, max_pixels=max_pixels
  )
  complete = False
  stale = _withdraw(split, out) if files.is_remote(out) else []
  try:
    with futures.ThreadPoolExecutor(threads) as pool:
      for path, low, high in zip(unpublished, bounds, bounds[1:], strict=False):
        prepared = _ordered_map(pool, prepare, items[low:high])
        _write_shard(
          path,
          zip(items[low:high], numbers[low:high], prepared, strict=True),
          summary,
        )
    if not summary.num_examples:
      raise ValueError(
        f'none of the {len(items)} images can be decoded; the first: '
        f'{summary.bad[0]["id"]}: {summary.bad[0]["reason"]}'
      )
    soft = any(isinstance(n, dict) for n in numbers)
    meta = {
      'format': 'vit_jax packed images',
      'version': records.SOFT_VERSION if soft else records.VERSION,
      'split': split,
      **summary.to_json(names),
      'short_side': short_side,
      'shuffle_seed': shuffle_seed,
    }
    _publish(split, out, names, meta, stale)
    complete = True
  finally:
    for path in [] if complete else unpublished:
      path.unlink(missing_ok=True)
  return meta


def has_split(out: epath.Path, split: str) -> bool:
  """Whether a directory has a packed split of this name."""
  return (out / (split + records.META_SUFFIX)).exists()


def classes_of_train(split: str, out: epath.Path) -> dict | None:
  """The classes of the packed split 'train', which other splits must use.

  None for 'train' itself, or if it is not packed.
  """
  index = out / ('train' + records.META_SUFFIX)
  if split == 'train' or not index.exists():
    return None
  meta = json.loads(index.read_text())
  return {k: meta[k] for k in ('num_classes', 'class_names', 'multi_label')}


def _refuse_existing(out: epath.Path, split: str, overwrite: bool) -> None:
  if not overwrite and has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another directory or '
      'split name, or replace it with overwrite=True'
    )


class _Summary:
  """Counts the images of a split as they are written, for its metadata.

  Attributes:
    num_examples: images written.
    bad: {'id', 'reason'} of each image that was left out.
  """

  def __init__(self, classes: dict, total: int, progress: Callable | None):
    self._classes, self._total, self._progress = classes, total, progress
    self.num_examples, self.bad = 0, []
    self._shard_counts: list[int] = []
    self._per_class = np.zeros(classes['num_classes'], np.int64)
    self._sizes: set[tuple[int, int]] = set()
    self._digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode())

  def start_shard(self):
    self._shard_counts.append(0)

  def add(self, name: str, labels: list | dict, prepared: Prepared):
    self.num_examples += 1
    self._shard_counts[-1] += 1
    self._digest.update(
      f'{name} {labels} {zlib.crc32(prepared.image)}\n'.encode()
    )
    # A soft label counts for its most probable class.
    counted = (
      max(labels, key=labels.__getitem__)
      if isinstance(labels, dict)
      else labels
    )
    self._per_class[counted] += 1
    self._sizes |= prepared.sizes
    self._report()

  def leave_out(self, name: str, reason: str):
    self.bad.append({'id': name, 'reason': reason})
    log.warning('left out: %s (%s)', name, reason)
    self._report()

  def _report(self):
    if self._progress:
      self._progress(self.num_examples + len(self.bad), self._total)

  def to_json(self, shard_names: list[str]) -> dict[str, Any]:
    return {
      'num_examples': self.num_examples,
      **self._classes,
      'image_shape': list(*self._sizes) if len(self._sizes) == 1 else None,
      'shards': [
        {'file': name, 'count': count}
        for name, count in zip(shard_names, self._shard_counts, strict=True)
      ],
      'examples_per_class': self._per_class.tolist(),
      'bad': len(self.bad),
      'bad_examples': self.bad[:_LISTED_BAD_EXAMPLES],
      'fingerprint': self._digest.hexdigest()[:16],
    }


def _write_shard(
  path: epath.Path, examples: Iterator, summary: _Summary
) -> None:
  """Writes the (item, labels, prepared image) of one shard."""
  from array_record.python import array_record_module  # pyright: ignore

  summary.start_shard()
  with files.staged(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      temporary, 'group_size:1,uncompressed'
    )
    try:
      for item, labels, prepared in examples:
        if prepared.reason:
          summary.leave_out(item.name, prepared.reason)
          continue
        writer.write(records.encode_record(prepared.image, labels, item.name))
        summary.add(item.name, labels, prepared)
    finally:
      writer.close()


def _unpublished(out: epath.Path, name: str) -> epath.Path:
  """Where a shard is written before its split is complete.

  Objects of a bucket cannot be renamed, so a shard gets its own name at once;
  without the metadata of the split it is not read.
  """
  return out / (name if files.is_remote(out) else name + '.tmp')


def _withdraw(split: str, out: epath.Path) -> list[str]:
  """Removes the metadata of an earlier split; returns its shards."""
  index = out / (split + records.META_SUFFIX)
  if not index.exists():
    return []
  stale = [s['file'] for s in json.loads(index.read_text())['shards']]
  index.unlink()
  return stale


def _publish(
  split: str, out: epath.Path, names: list[str], meta: dict, stale: list[str]
) -> None:
  """Makes a finished split visible, and replaces an earlier one.

  The old metadata is removed first and the new metadata is written last, so a
  reader never sees metadata that does not belong to the shards.
  """
  index = out / (split + records.META_SUFFIX)
  stale = stale + _withdraw(split, out)
  if not files.is_remote(out):
    for name in names:
      os.replace(_unpublished(out, name), out / name)
  for name in set(stale) - set(names):
    (out / name).unlink(missing_ok=True)
  files.write_atomically(index, json.dumps(meta, indent=1))


def _ordered_map(
  pool: futures.Executor, function: Callable, items: list
) -> Iterator:
  """Maps in a pool, in order; a limited number of results is kept waiting."""
  for start in range(0, len(items), _POOL_CHUNK):
    yield from pool.map(function, items[start : start + _POOL_CHUNK])
