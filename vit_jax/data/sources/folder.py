"""A folder of images, a directory for every class."""

import hashlib
from typing import Any

import numpy as np

from vit_jax.data import layout as layouts
from vit_jax.data.identity import describe_list, fingerprint
from vit_jax.data.listing import File, list_images, report
from vit_jax.data.names import normalized, printable
from vit_jax.data.sources.source import Source, checked_index, data_directory
from vit_jax.data.splits import (
  SPLIT_FOLDERS,
  NoSplit,
  pick_split,
  unknown_split,
)


class Folder(Source):
  """A directory of images, one directory a class (see `vit_jax.data.layout`).

  Of a flat directory, a fixed fraction of every class (chosen by a hash of the
  file name) is held out as the split 'test'. Class numbers follow the sorted
  class names of the training images, whatever the split, so they agree.
  Examples are in the order of a hash of their path.
  """

  def __init__(
    self, split: str, data_dir: str, holdout: float, flat: bool = False
  ):
    root = data_directory(data_dir, 'folder')
    layout = layouts.read_layout(list_images(root), flat=flat)
    report(layout.summary, layout.complete)
    if layouts.FLAT in layout.splits:
      chosen = _held_out_split(
        layout.splits[layouts.FLAT], split, holdout, root
      )
      names = sorted(layout.splits[layouts.FLAT].classes)
    else:
      key = pick_split(split, list(layout.splits), f'folder {root}')
      names = sorted(layout.splits['train'].classes)
      chosen = layout.splits[key].classes
      extra = sorted(set(chosen) - set(names))
      if extra:
        raise ValueError(
          f'{root / key} has classes that {root / "train"} has not: '
          f'{", ".join(extra[:10])}. A class needs training images: add '
          f'them, or remove the class from {key}.'
        )
    examples = sorted(
      (_order(file.name), file.name, file, label)
      for label, c in enumerate(names)
      for file in chosen.get(c, ())
    )
    if not examples:
      raise NoSplit(
        f'{root}: the split {split!r} is empty (data.holdout={holdout})'
      )
    self._files = [file for _, _, file, _ in examples]
    self._labels = np.array([label for *_, label in examples], np.int32)
    self.num_classes, self.class_names = len(names), names
    self.name = f'folder {root} ({split})'
    self.summary = layout.summary
    self.fingerprint = fingerprint('folder', self._lines(), names)

  def __len__(self):
    return len(self._files)

  def __getitem__(self, i):
    file = self._files[checked_index(i, len(self))]
    return {
      'image': file.read(),
      'label': int(self._labels[i]),
      'id': file.name,
    }

  def labels(self) -> np.ndarray:
    return self._labels

  def _lines(self) -> list[str]:
    """What identifies each example: its path below the root, and its size."""
    return [f'{normalized(f.name)}, {f.size} bytes' for f in self._files]

  def describe_files(self) -> list[str]:
    return describe_list(self._lines())

  def earlier_fingerprint(self) -> str:
    paths = [file.name for file in self._files]
    return fingerprint('folder', paths, self.class_names)

  def describe(self, i: int) -> str:
    file = self._files[i]
    path = printable(file.path)
    return path if file.offset < 0 else f'{path}:{file.name}'


def _order(name: str) -> bytes:
  """The hash that decides about the order of examples."""
  return hashlib.md5(normalized(name).encode()).digest()


def _held_out_split(
  flat: layouts.Split, split: str, holdout: float, root: Any
) -> dict[str, list[File]]:
  """The classes of the split 'train' or 'test' of a flat directory."""
  name = SPLIT_FOLDERS.get(split.lower(), split)
  if name not in ('train', 'test', 'validation', 'val'):
    raise unknown_split(split, ('train', 'test'), f'folder {root}')
  if not 0 <= holdout < 1:
    raise ValueError(f'data.holdout={holdout}: must be in [0, 1)')
  return {
    c: _held_out(flat, files, holdout, name != 'train')
    for c, files in flat.classes.items()
  }


def _held_out(
  flat: layouts.Split, files: list[File], fraction: float, test: bool
) -> list[File]:
  """The files of one class that are for testing, or those for training."""
  ordered = sorted(
    files, key=lambda file: (_order(flat.below_class(file)), file.name)
  )
  n = min(max(round(len(files) * fraction), int(fraction > 0)), len(files) - 1)
  return ordered[:n] if test else ordered[n:]
