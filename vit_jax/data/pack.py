"""Packs images into ArrayRecord shards: the engine of `vit-jax pack`.

It writes a shuffled copy of a large data set as a few large files, which the
source 'packed' reads. The inputs may be

  a folder   DIR/class/x.jpg, or DIR/{train,val,test}/class/x.jpg, of which
             every split is packed
  tar files  of such a folder, which are read as the folder is (layout.py); one
             flat tar per class, named after the class (ImageNet-21k); or a tar
             of such tars (ImageNet)
  a folder or tar files with a file of labels (labels.py)
  files of records: webdataset tars (webdataset.py), TFRecord or Parquet
             (record_files.py)

records.py describes the files that are written. They get their final names when
all of them are complete, the metadata file last.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import itertools
import json
import logging
import os
from typing import Any

from etils import epath

from vit_jax import files
from vit_jax.data import records
from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.labels import read_labels
from vit_jax.data.pack_beam import Runner
from vit_jax.data.pack_inputs import (
  Item,
  number_labels,
  read_inputs,
)
from vit_jax.data.pack_shards import (
  ExampleLabels,
  Shard,
  ShardPlan,
  Storing,
  describe_split,
  plan_shards,
  write_shard,
)

log = logging.getLogger(__name__)

# The folder of what a pipeline has finished of a split, until all is finished.
PACKING_SUFFIX = '.packing'
# The folder of the images of Parquet files, while they are packed.
SPOOL = '.images'


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
  runner: Runner | None = None,
) -> dict[str, dict]:
  """Writes the shards and metadata of one or more splits.

  Args:
    inputs: a directory, a tar or a file of records, or several of either.
    out_dir: directory to write to; created if needed.
    split: the name of the split; by default 'train', or all that the inputs
      have. Others take the class numbers of the 'train' in `out_dir`.
    shards: number of files of a split; by default one per 10,000 images.
    shuffle_seed: determines the order; None keeps that of their names.
    short_side: shrink images whose shorter side is longer than this, as JPEG.
    quality: quality of that JPEG, 1 to 100.
    labels_file: JSON or CSV with the labels, see the module docstring.
    label_columns: what is declared of that file, or of records: 'file_column',
      'label_column' and 'kind' of `labels.read_labels`.
    flat: take every folder for a class, also one named 'train' or 'test'.
    max_pixels: larger images are left out as bad.
    threads: that read, check and encode; by default one for each core.
    overwrite: replace a split that `out_dir` already has.
    progress: called with (images done, images in the split).
    runner: of an Apache Beam pipeline; None writes the shards in this process.

  Returns:
    {split: metadata}. `metadata['bad']` counts the images that were left out
    because they cannot be decoded; `metadata['bad_examples']` names the first
    1,000 of them with the reason, and SPLIT.bad.jsonl names all of them.

  Raises:
    ValueError: there is nothing to pack, a class or label does not fit, or a
      split exists already; the message says what to change.
  """
  paths = _existing(inputs, out_dir)
  options: dict[str, Any] = dict(
    shards=shards,
    shuffle_seed=shuffle_seed,
    storing=Storing(short_side, quality, max_pixels),
    threads=threads or (4 if runner else os.cpu_count() or 1),
    overwrite=overwrite,
    progress=progress,
    runner=runner,
  )
  out = files.as_path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  columns = label_columns or {}
  labels = read_labels(labels_file, **columns) if labels_file else None
  with _temporary_folder(out / SPOOL) as spool:
    read = read_inputs(
      paths,
      spool=spool,
      labels=labels,
      label_field=None if labels else columns.get('label_column'),
      kind=columns.get('kind'),
      split=split,
      flat=flat,
    )
    for name in read.splits:  # all are checked before the first is written
      _refuse_existing(out, name, overwrite)
    result = {}
    for name, items in read.splits.items():
      of_train = classes_of_train(name, out)
      numbers, classes = number_labels(read.names[name], read.labels, of_train)
      result[name] = write_split(name, out, items, numbers, classes, **options)
    return result


@contextlib.contextmanager
def _temporary_folder(path: epath.Path) -> Iterator[epath.Path]:
  """Removes a folder at the end; whoever needs it makes it."""
  try:
    yield path
  finally:
    if path.exists():
      path.rmtree()


def _existing(
  inputs: str | os.PathLike | Sequence[str | os.PathLike],
  out_dir: str | os.PathLike,
) -> list[epath.Path]:
  """The inputs as paths.

  Raises:
    ValueError: there are none, one is missing, or one is the output too.
  """
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
  if files.as_path(out_dir) in paths:
    raise ValueError(
      f'{out_dir} is to be packed: give another directory for the result'
    )
  return paths


def write_split(
  split: str,
  out: epath.Path,
  items: Sequence[Item],
  labels: Sequence[ExampleLabels],
  classes: dict,
  *,
  shards: int | None = None,
  shuffle_seed: int | None = 0,
  storing: Storing = Storing(),  # noqa: B008 (it is frozen)
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
  threads: int = 1,
  runner: Runner | None = None,
) -> dict:
  """Writes images with known labels as one split.

  Args:
    split: name of the split.
    out: directory to write to.
    items: the images; an image may occur several times.
    labels: for each item a list of class numbers, or {class: probability}.
    classes: 'num_classes', 'class_names' and 'multi_label' for the metadata.
    storing: how images are stored.
    shards, ..., runner: see `pack`.

  Returns:
    The metadata.

  Raises:
    ValueError: the split exists, or no image can be decoded.
  """
  _refuse_existing(out, split, overwrite)
  plans = plan_shards(
    split,
    items,
    labels,
    shards=shards,
    shuffle_seed=shuffle_seed,
    storing=storing,
  )
  paths = [_unpublished(out, plan.name) for plan in plans]
  progress = progress or (lambda done, total: None)
  kept = out / (split + PACKING_SUFFIX) if runner else None
  stale = _withdraw(split, out) if files.is_remote(out) else []
  complete = False
  try:
    if runner and kept:
      written = runner.write_shards(plans, paths, kept, threads, progress)
    else:
      written = _write_here(plans, paths, threads, progress)
    meta = describe_split(split, plans, written, classes)
    meta |= {'short_side': storing.short_side, 'shuffle_seed': shuffle_seed}
    bad = [x for shard in written for x in shard.bad]
    _publish(split, out, [plan.name for plan in plans], meta, bad, stale)
    complete = True
  finally:
    if complete and kept:
      kept.rmtree()
    if not complete and not kept:
      for path in paths:
        path.unlink(missing_ok=True)
  return meta


def _write_here(
  plans: Sequence[ShardPlan],
  paths: Sequence[epath.Path],
  threads: int,
  progress: Callable[[int, int], None],
) -> list[Shard]:
  """Writes the shards in this process, one after the other."""
  total = sum(len(plan.examples) for plan in plans)
  done = itertools.count(1)
  report = lambda: progress(next(done), total)
  with futures.ThreadPoolExecutor(threads) as pool:
    return [
      write_shard(plan, path, pool, report)
      for plan, path in zip(plans, paths, strict=True)
    ]


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
  stale = []
  with contextlib.suppress(ValueError):  # damaged: its shards are unknown
    stale = [s['file'] for s in records.read_metadata(index)['shards']]
  index.unlink()
  return stale


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
  meta = records.read_metadata(index)
  return {k: meta[k] for k in ('num_classes', 'class_names', 'multi_label')}


def _refuse_existing(out: epath.Path, split: str, overwrite: bool) -> None:
  if not overwrite and has_split(out, split):
    raise ValueError(
      f'{out} already has the split {split!r}: give another directory or '
      'split name, or replace it with overwrite=True'
    )


def _publish(
  split: str,
  out: epath.Path,
  names: list[str],
  meta: dict,
  bad: Sequence[dict[str, str]],
  stale: Sequence[str],
) -> None:
  """Makes a finished split visible, and replaces an earlier one.

  The old metadata is removed first and the new metadata is written last, so a
  reader never sees metadata that does not belong to the shards.
  """
  index = out / (split + records.META_SUFFIX)
  stale = [*stale, *_withdraw(split, out)]
  if not files.is_remote(out):
    for name in names:
      os.replace(_unpublished(out, name), out / name)
  for name in set(stale) - set(names):
    (out / name).unlink(missing_ok=True)
  left_out = out / (split + records.BAD_SUFFIX)
  if bad:
    files.write_atomically(left_out, ''.join(f'{json.dumps(x)}\n' for x in bad))
  else:
    left_out.unlink(missing_ok=True)
  files.write_atomically(
    index, json.dumps(records.seal_metadata(meta), indent=1)
  )
