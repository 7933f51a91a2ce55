"""What the folders of a data set mean: splits and classes.

One reader for folders and tar files, so that a tar and the folder that it was
made from are the same data set:

  ROOT/CLASS/x.jpg         a flat data set. Images deeper in the folder of a
                           class belong to the class.
  ROOT/SPLIT/CLASS/x.jpg   with the splits that `splits.SPLIT_FOLDERS` names, in
                           upper or lower case

A single folder that holds everything else, as archives often have, is taken for
the root. Whatever is left out is counted (`Layout.summary`).
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses

from vit_jax.data.decode import image_suffixes
from vit_jax.data.listing import File, Listing, in_words
from vit_jax.data.names import look_alikes, normalized
from vit_jax.data.splits import SPLIT_FOLDERS

FLAT = ''  # the name of the only split of a flat data set
_SHOWN_EMPTY = 5  # empty classes that are named


class NoClasses(ValueError):
  """Images that are in no folders of classes."""


@dataclasses.dataclass(frozen=True)
class Split:
  """The images of a split.

  Attributes:
    level: number of folders down to that of the class, which is included.
    classes: {name of the class: its images}, sorted; those that have any.
  """

  level: int
  classes: dict[str, list[File]]

  def below_class(self, file: File) -> str:
    """The path of an image below the folder of its class."""
    return file.name.split('/', self.level)[self.level]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A data set, read from the names of its files.

  Attributes:
    root: the folder or tar file.
    splits: by name; a flat data set has only FLAT.
    summary: how many images and classes there are, and what was left out.
    complete: whether nothing was left out.
  """

  root: str
  splits: dict[str, Split]
  summary: str
  complete: bool


def read_layout(listing: Listing, *, flat: bool = False) -> Layout:
  """Splits and classes of a listing.

  Args:
    listing: of a folder or tar file.
    flat: take every folder for a class, whatever its name.

  Raises:
    ValueError: there are no images, no classes, or two readings; each with the
      fix.
  """
  if not listing.files:
    left_out = in_words(listing.skipped)
    raise ValueError(
      f'{listing.root} has no images: nothing matches CLASS/*'
      f'{{{",".join(image_suffixes())}}} (upper case is fine too)'
      + (f'; skipped: {left_out}' if left_out else '')
    )
  depth = _wrapping_folders(listing)
  groups, loose = _group(listing.files, depth)
  named = {} if flat else _split_folders(listing.root, groups, depth)
  notes = collections.Counter(listing.skipped)
  notes['image outside the folders of classes'] += len(loose)
  if named:
    splits = {}
    for folder, group in groups.items():
      if folder not in named:
        notes[
          f'in "{folder}", which is no split (data.flat=True takes every '
          'folder for a class)'
        ] += len(group)
        continue
      classes, outside = _group(group, depth + 1)
      notes['image outside the folders of classes'] += len(outside)
      if classes:
        splits[named[folder]] = Split(depth + 2, _classes(classes))
  else:
    if not groups:
      raise NoClasses(
        f'{listing.root} has {len(loose)} images but no class directories. '
        'Put them into one directory a class: '
        f'{listing.root}/CLASS/{loose[0].name.split("/")[-1]}'
      )
    if not flat:
      _refuse_inner_splits(listing.root, groups, depth)
    splits = {FLAT: Split(depth + 1, _classes(groups))}
  return Layout(
    listing.root, splits, *_summarize(listing, splits, named, depth, notes)
  )


def read_splits(
  listing: Listing, *, flat: bool, every: bool = True
) -> dict[str, dict[File, str]]:
  """The splits of images whose labels are in a file.

  Args:
    listing: of a folder or tar file.
    flat: take no folder for a split.
    every: whether all images are wanted, or those of one split.

  Returns:
    {split: {image: its name below the folder of the split}}; without splits
    only FLAT.

  Raises:
    ValueError: there are no images, or it is not clear which folders are
      splits.
  """
  if not listing.files:
    read_layout(listing)  # raises, and says what was left out
  depth = _common_folders(listing.files)
  groups, loose = _group(listing.files, depth)
  named = {
    f: SPLIT_FOLDERS[f.lower()] for f in groups if f.lower() in SPLIT_FOLDERS
  }
  if flat or not named:
    return {FLAT: {file: file.name for file in listing.files}}
  others = [f for f in groups if f not in named]
  flat_fix = 'If they are no splits, say so: data.flat=True takes them as one'
  if every and (others or loose or 'train' not in named.values()):
    beside = ', '.join([*others[:3], *(['images'] if loose else [])])
    raise ValueError(
      f'{listing.root} has {", ".join(named)}'
      + (f', and {beside} beside them' if beside else ' but no train')
      + f'. Pack one split after the other, with --split. {flat_fix}'
    )
  _refuse_same_split(listing.root, named, flat_fix)
  return {
    named[folder]: {
      file: file.name.split('/', depth + 1)[depth + 1] for file in group
    }
    for folder, group in groups.items()
    if folder in named
  }


def _common_folders(images: Sequence[File]) -> int:
  """How many folders, one in the other and no splits, hold all images."""
  depth = 0
  while True:
    groups, loose = _group(images, depth)
    if loose or len(groups) != 1 or next(iter(groups)).lower() in SPLIT_FOLDERS:
      return depth
    depth += 1


def _group(
  files: Iterable[File], depth: int
) -> tuple[dict[str, list[File]], list[File]]:
  """{folder at a depth: its files, at any depth}, and the files beside them."""
  groups: dict[str, list[File]] = {}
  loose = []
  for file in files:
    names = file.name.split('/', depth + 1)
    if len(names) == depth + 1:
      loose.append(file)
    else:
      groups.setdefault(names[depth], []).append(file)
  return dict(sorted(groups.items())), loose


def _classes(groups: dict[str, list[File]]) -> dict[str, list[File]]:
  """Groups by the name of the class: one class in both Unicode forms."""
  classes: dict[str, list[File]] = {}
  for folder, group in groups.items():
    classes.setdefault(normalized(folder), []).extend(group)
  return dict(sorted(classes.items()))


def _wrapping_folders(listing: Listing) -> int:
  """How many folders, one in the other, hold everything.

  Such a folder is not itself a class, which has images directly in it, nor a
  split.
  """
  depth = 0
  while True:
    groups, loose = _group(listing.files, depth)
    folders = {
      name.split('/')[depth]
      for name in listing.folders
      if name.count('/') >= depth
    }
    if loose or len(groups) != 1 or len(folders) != 1:
      return depth
    (folder,) = groups
    if folder.lower() in SPLIT_FOLDERS or not _deep(groups[folder], depth):
      return depth
    if any(file.name.count('/') == depth + 1 for file in groups[folder]):
      return depth
    depth += 1


def _deep(files: Sequence[File], depth: int) -> bool:
  """Whether a folder at a depth has folders with images in it."""
  return any(file.name.count('/') >= depth + 2 for file in files)


def _split_folders(
  root: str, groups: dict[str, list[File]], depth: int
) -> dict[str, str]:
  """{folder: split} where the folders are splits, {} where they are classes."""
  named = {
    f: SPLIT_FOLDERS[f.lower()] for f in groups if f.lower() in SPLIT_FOLDERS
  }
  deep = [f for f in named if _deep(groups[f], depth)]
  flat = (
    'If they are classes, say so: data.flat=True takes every folder for a class'
  )
  if not deep:
    if groups and len(named) == len(groups):
      first = next(iter(groups))
      raise NoClasses(
        f'{root} has {", ".join(groups)}, whose {len(groups[first])} images '
        'have no class directories. Put them into one directory a class: '
        f'{root}/{first}/CLASS/{groups[first][0].name.split("/")[-1]}. {flat}'
      )
    return {}
  if not any(named[f] == 'train' for f in deep):
    raise ValueError(
      f'{root} has {", ".join(deep)} but no train directory with class '
      'directories. Class numbers come from the training images: add '
      f'train/CLASS/*.jpg, or give a flat directory of classes. {flat}'
    )
  _refuse_same_split(root, named, flat)
  return named


def _refuse_same_split(root: str, named: dict[str, str], fix: str) -> None:
  """Raises ValueError if two folders are the same split."""
  taken: dict[str, str] = {}
  for folder, split in named.items():
    if split in taken:
      raise ValueError(
        f'{root} has {taken[split]} and {folder}, which are both the split '
        f'{split!r}: keep one of them. {fix}'
      )
    taken[split] = folder


def _refuse_inner_splits(
  root: str, groups: dict[str, list[File]], depth: int
) -> None:
  """Raises ValueError for CLASS/SPLIT/x.jpg, whose splits would be mixed."""
  inner = {
    file.name.split('/')[depth + 1].lower()
    for group in groups.values()
    for file in group
    if file.name.count('/') > depth + 1
  }
  names = {SPLIT_FOLDERS[x] for x in inner if x in SPLIT_FOLDERS}
  if 'train' in names and len(names) > 1:
    raise ValueError(
      f'{root} has the splits {", ".join(sorted(names))} within the folders of '
      'classes, where they would be mixed. Put the classes into the splits: '
      'train/CLASS/*.jpg. If they are no splits, say so: data.flat=True takes '
      'every folder for a class'
    )


def _summarize(
  listing: Listing,
  splits: dict[str, Split],
  named: dict[str, str],
  depth: int,
  notes: collections.Counter[str],
) -> tuple[str, bool]:
  """The summary of a layout, and whether nothing was left out."""
  count = lambda split: sum(len(x) for x in split.classes.values())
  total = sum(map(count, splits.values()))
  names = set().union(*(split.classes for split in splits.values()))
  text = (
    f'{listing.root}: {total:,} images of '
    f'{len(names):,} class{"" if len(names) == 1 else "es"}'
  )
  if named:
    text += f' ({", ".join(f"{n} {count(s):,}" for n, s in splits.items())})'
  nested = sum(
    file.name.count('/') > split.level
    for split in splits.values()
    for group in split.classes.values()
    for file in group
  )
  if nested == total:
    text += (
      '; all of them are in folders below the folder of their class, such as '
      f'{_below(splits)}: if those are the classes, move them up'
    )
  elif nested:
    text += f'; {nested:,} of them in folders below the folder of their class'
  alike = look_alikes(names)
  if alike:
    text += f'; the classes {alike} differ only in case or blanks'
  left_out = _empty(listing.folders, splits, named, depth)
  unclear = alike or nested == total
  complete = not (left_out or unclear or set(+notes) - {'hidden'})
  if +notes:
    left_out = [in_words(notes), *left_out]
  if left_out:
    text += f'; skipped: {", ".join(left_out)}'
  return text, complete


def _empty(
  folders: set[str],
  splits: dict[str, Split],
  named: dict[str, str],
  depth: int,
) -> list[str]:
  """What is said of folders of classes, and of splits, without images."""
  empty = []
  if named:
    at_top = sorted(x for x in folders if x.count('/') == depth)
    filled = {file.name.split('/')[depth] for file in _files(splits)}
    empty = [
      f'folder "{x}" is empty'
      for x in at_top
      if x.split('/')[-1] not in filled and x.lower() in SPLIT_FOLDERS
    ]
  for split, folder in ({v: k for k, v in named.items()} or {FLAT: ''}).items():
    where = f' in {split}' if split not in (FLAT, 'train') else ''
    has = splits[split].classes if split in splits else {}
    level = depth + bool(folder)
    for name in sorted(folders):
      names = name.split('/')
      is_class = len(names) == level + 1
      if is_class and folder and names[depth] != folder:
        continue
      if is_class and normalized(names[-1]) not in has:
        empty.append(f'class "{names[-1]}" is empty{where}')
  if len(empty) > _SHOWN_EMPTY:
    more = len(empty) - _SHOWN_EMPTY
    empty = [*empty[:_SHOWN_EMPTY], f'{more:,} more empty classes']
  return empty


def _below(splits: dict[str, Split]) -> str:
  """'"day" in "bus"': the first folder below that of a class."""
  split = next(iter(splits.values()))
  name, group = next(iter(split.classes.items()))
  first = min(split.below_class(file) for file in group).split('/')[0]
  return f'"{first}" in "{name}"'


def _files(splits: dict[str, Split]) -> Iterable[File]:
  """All images of a layout."""
  for split in splits.values():
    for group in split.classes.values():
      yield from group
