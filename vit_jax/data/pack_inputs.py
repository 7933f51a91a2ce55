"""Reads the inputs of `vit-jax pack`: folders, tar files and labels files."""

from collections.abc import Sequence
import dataclasses
import logging
import os
import pathlib
from typing import Any

from etils import epath

from vit_jax.data import layout as layouts
from vit_jax.data.labels import Label, Labels
from vit_jax.data.listing import (
  File,
  Listing,
  list_images,
  report,
)
from vit_jax.data.names import normalized, printable
from vit_jax.data.record_files import find_record_files, read_record_files
from vit_jax.data.record_inputs import Records, name_records
from vit_jax.data.splits import pick_split
from vit_jax.data.webdataset import read_webdataset
from vit_jax.weights.metadata import MOST_CLASSES

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """An image to pack.

  Attributes:
    file: where it is read.
    name: its id in the packed data set.
    label: name of its class, from its folder; '' with a labels file.
  """

  file: File
  name: str
  label: str = ''

  def read(self) -> bytes:
    """The encoded image."""
    return self.file.read()


def list_items(path: epath.Path) -> list[Item]:
  """All images of a folder or tar file, at any depth, without labels.

  Raises:
    ValueError: `path` is neither, or a compressed tar, whose images cannot be
      read in any order.
  """
  return [Item(file, file.name) for file in list_images(path).files]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The images to pack.

  Attributes:
    splits: {split: its images}, sorted by name.
    names: {split: the labels of each image}, names or numbers of classes.
    labels: where they come from; None if folders are the classes.
  """

  splits: dict[str, list[Item]]
  names: dict[str, list[list[Label]]]
  labels: Labels | None


def read_inputs(
  paths: Sequence[epath.Path],
  *,
  spool: epath.Path,
  labels: Labels | None = None,
  label_field: str | None = None,
  kind: str | None = None,
  split: str | None = None,
  flat: bool = False,
) -> Inputs:
  """The images of each split, sorted by name.

  Args:
    paths: folders and tar files, which are read alike (`vit_jax.data.layout`),
      or files of records (record_files.py).
    spool: see `record_files.read_record_files`.
    labels: of a file; folders are no classes then, and labels beside the images
      are not read.
    label_field, kind: what is declared of the labels of files of records.
    split: the split to take of inputs that have splits, and the name of the
      others; None takes all splits, and calls the others 'train'.
    flat: take every folder for a class.

  Raises:
    ValueError: an input has no images of such a form, or only some inputs have
      splits.
  """
  read: list[dict[str, list[Item]]] = []
  records: list[Records] = []
  for path in paths:
    source = _open_input(path, spool, label_field, labels is not None)
    if isinstance(source, Records):
      records.append(source)
    else:
      if labels is not None and len(paths) == 1:
        source = _without_tar_name(source)
      every = split is None
      read.append(_read_input(source, labels is not None, flat, every))
  if records and read:
    raise ValueError(
      f'{records[0].root} has labels of its own, and the classes of other '
      'inputs are their folders: pack them one after the other'
    )
  if records:
    named, understood = name_records(records, kind)
    labels = labels or understood
    read = [
      {split: [Item(x, x.name) for x in group] for split, group in x.items()}
      for x in named
    ]
  elif labels is None:
    _check_classes(paths, read)
  splits = _merge_splits(paths, read, split)
  if labels is None:
    return Inputs(
      splits, {k: [[x.label] for x in v] for k, v in splits.items()}, None
    )
  # All splits at once: an entry is for one image of all of them.
  items = [x for v in splits.values() for x in v]
  taken, unused = entries_of(items, labels)
  if unused:
    log.warning(
      '%d of %d entries of the labels file name no image, such as %s',
      len(unused),
      len(labels.entries),
      ', '.join(unused[:3]),
    )
  entries = iter(taken)
  names = {k: [next(entries) for _ in v] for k, v in splits.items()}
  return Inputs(splits, names, labels)


def _merge_splits(
  paths: Sequence[epath.Path],
  read: Sequence[dict[str, list[Item]]],
  split: str | None,
) -> dict[str, list[Item]]:
  """The images of all inputs by split, sorted by name."""
  with_splits = [layouts.FLAT not in splits for splits in read]
  if split is None and any(with_splits) and not all(with_splits):
    raise ValueError(
      f'{paths[with_splits.index(True)]} has splits and '
      f'{paths[with_splits.index(False)]} has none: pack them one after the '
      'other, and name the split'
    )
  merged: dict[str, list[Item]] = {}
  for path, splits in zip(paths, read, strict=True):
    if split is not None:
      key = layouts.FLAT
      if key not in splits:
        key = pick_split(split, list(splits), str(path))
      splits = {split: splits[key]}
    for name, items in splits.items():
      merged.setdefault(name or 'train', []).extend(items)
  _refuse_overlap(paths, merged)
  return {
    name: sorted(merged[name], key=lambda item: (item.name, item.file.path))
    for name in sorted(merged, key=lambda name: (name != 'train', name))
  }


def _refuse_overlap(
  paths: Sequence[epath.Path], merged: dict[str, list[Item]]
) -> None:
  """Raises ValueError if two inputs hold the same image, or are the same."""
  if len(paths) == 1:
    return
  seen: set[tuple[str, int, int]] = set()
  for items in merged.values():
    for item in items:
      file = item.file
      key = (os.path.abspath(file.path), file.offset, file.size)
      if key in seen:
        raise ValueError(
          f'{file.path} is in two of the inputs {", ".join(map(str, paths))}: '
          'give every image once'
        )
      seen.add(key)


def _open_input(
  path: epath.Path, spool: epath.Path, label_field: str | None, labeled: bool
) -> Listing | Records:
  """The records of an input, if it has some with labels, else its listing."""
  found = [] if path.is_dir() else find_record_files(path)
  listing = None if found else list_images(path)
  if listing and not listing.files:
    found = find_record_files(path)
  if found:
    return read_record_files(path, found, spool=spool, label_field=label_field)
  assert listing
  return (None if labeled else read_webdataset(listing, label_field)) or listing


def _without_tar_name(listing: Listing) -> Listing:
  """The listing of a tar without folders, whose name is then no folder.

  Where labels are in a file, the images have the names that they have in the
  folder that the tar was made from.
  """
  if os.path.isdir(listing.root) or len(listing.flat_tars) != 1:
    return listing
  (folder,) = listing.flat_tars
  names = [file.name.removeprefix(folder + '/') for file in listing.files]
  return dataclasses.replace(
    listing,
    files=[
      dataclasses.replace(file, name=name)
      for file, name in zip(listing.files, names, strict=True)
    ],
  )


def _read_input(
  listing: Listing, labeled: bool, flat: bool, every: bool
) -> dict[str, list[Item]]:
  """{split: images} of one folder or tar file."""
  if labeled:
    splits = layouts.read_splits(listing, flat=flat, every=every)
    return {
      split: [Item(file, name) for file, name in group.items()]
      for split, group in splits.items()
    }
  layout = layouts.read_layout(listing, flat=flat)
  report(layout.summary, layout.complete)
  return {
    name: [
      Item(file, f'{c}/{split.below_class(file)}', c)
      for c, files in split.classes.items()
      for file in files
    ]
    for name, split in layout.splits.items()
  }


def _check_classes(
  paths: Sequence[epath.Path], read: list[dict[str, list[Item]]]
) -> None:
  """Refuses tars without folders whose only class is the name of the tar."""
  classes = {
    x.label for splits in read for items in splits.values() for x in items
  }
  stems = {normalized(printable(path.name.split('.')[0])) for path in paths}
  files = [
    x.file for splits in read for items in splits.values() for x in items
  ]
  if (
    classes <= stems
    and len(classes) == 1
    and all(file.offset >= 0 for file in files)
  ):
    raise ValueError(
      f'{paths[0]}: all images are of one class, {min(classes)!r}: a tar needs '
      'class directories, or one tar a class, or give labels_file'
    )


def number_labels(
  names: list[list[Label]],
  labels: Labels | None,
  classes: dict[str, Any] | None,
) -> tuple[list[list[int]], dict[str, Any]]:
  """The class numbers of each image, and the classes.

  Args:
    names: the labels of each image, as in `Inputs`.
    labels: where they come from; None if folders are the classes.
    classes: of the packed training split, which others must follow:
      'num_classes', 'class_names' (or None) and 'multi_label'. None to take
      the classes that occur.

  Returns:
    A list of class numbers for each image, and a dict as `classes`.

  Raises:
    ValueError: an image has no label, or one that is not a class.
  """
  multi_label = labels is not None and labels.multi_label
  one_hot = labels.class_names if labels else None
  if one_hot is not None and classes and classes['class_names'] != one_hot:
    names = [[one_hot[int(k)] for k in n] for n in names]
  if classes:
    multi_label = classes['multi_label']
    if not multi_label and any(len(n) != 1 for n in names):
      raise ValueError(
        'some images have several labels, those of the packed '
        "'train' have one each: pack 'train' again"
      )
  number, class_names = _class_numbers(
    {x for n in names for x in n}, classes, one_hot
  )
  num_classes = (
    classes['num_classes']
    if classes
    else len(class_names or range(max(number.values(), default=0) + 1))
  )
  return [[number[x] for x in n] for n in names], {
    'num_classes': num_classes,
    'class_names': class_names,
    'multi_label': multi_label,
  }


def _class_numbers(
  labels: set[Label],
  classes: dict[str, Any] | None,
  one_hot: list[str] | None = None,
) -> tuple[dict[Label, int], list[str] | None]:
  """{label: class number}, and the class names, None if labels are numbers."""
  numbers: dict[Label, int] = {}
  if all(isinstance(x, int) for x in labels):
    limit = classes['num_classes'] if classes else MOST_CLASSES
    numbers.update((x, x) for x in labels if isinstance(x, int))
    wrong = sorted(x for x in numbers.values() if not 0 <= x < limit)
    names = classes['class_names'] if classes else one_hot
  else:
    names = classes['class_names'] if classes else None
    if names is None:
      names = one_hot or sorted(map(str, labels))
    table = {normalized(name): i for i, name in enumerate(names)}
    wrong = sorted(str(x) for x in labels if str(x) not in table)
    numbers.update((x, table.get(str(x), -1)) for x in labels)
  if wrong:
    raise ValueError(
      f'{len(wrong)} labels are not classes'
      + (" of the packed 'train'" if classes else '')
      + f': {", ".join(map(str, wrong[:10]))}'
    )
  return numbers, names


def entries_of(
  items: Sequence[Item], labels: Labels
) -> tuple[list[list[Label]], list[str]]:
  """The labels of images, by the path, the file name, or the stem of each.

  Args:
    items: the images.
    labels: of a file that names the images.

  Returns:
    The labels of each image, and the names of the file that are no image.

  Raises:
    ValueError: an image has no entry, or several images share one.
  """
  by_file_name: dict[str, str] = {}
  for key in labels.entries:  # entries may name folders that are not there
    short = key.rsplit('/', 1)[-1]
    by_file_name[short] = '' if short in by_file_name else key
  taken: dict[str, str] = {}
  entries, lost = [], []
  for item in items:
    # An entry may name the folder of the split, or not.
    key = normalized(item.file.name)
    if key not in labels.entries:
      key = _key(normalized(item.name), labels.entries, by_file_name)
    if key is None:
      lost.append(item.name)
      continue
    if key in taken:
      raise ValueError(
        f'the labels file has one entry, {key!r}, for several images: '
        f'{taken[key]} and {item.file.name}. Give their paths'
      )
    taken[key] = item.file.name
    entries.append(labels.entries[key])
  if lost:
    raise ValueError(
      f'{len(lost)} of {len(items)} images have no entry in the labels '
      f'file, such as {", ".join(lost[:3])}'
    )
  return entries, [key for key in labels.entries if key not in taken]


def _key(
  name: str, entries: dict[str, list[Label]], by_file_name: dict[str, str]
) -> str | None:
  path = pathlib.PurePosixPath(name)
  for key in (name, path.name, path.stem):
    if key in entries:
      return key
  return by_file_name.get(path.name) or None
