"""A folder of images with one directory per class."""

import hashlib

from etils import epath
import numpy as np

from vit_jax.data.sources.source import (
  Source,
  checked_index,
  data_directory,
  fingerprint,
)
from vit_jax.data.splits import SPLIT_ALIASES, pick_split, unknown_split

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


class Folder(Source):
  """A folder of images with one directory per class.

  The folder has one of two layouts: DIR/train/class/x.jpg with val/,
  validation/ or test/ beside train/, or DIR/class/x.jpg. In the second layout a
  fixed fraction of every class, chosen by a hash of the file name, is held out
  as the split 'test'. Classes are numbered in the order of the sorted names in
  the training split; the other splits use the same numbers. Examples are
  sorted by a hash of their path, which mixes the classes.

  Args:
    split: 'train', or a name of the test split (see `splits.SPLIT_ALIASES`).
    data_dir: the folder, local or remote.
    holdout: fraction of every class that is held out, in the second layout.

  Raises:
    ValueError: the folder has no images of this layout, no such split, or test
      images of a class without training images.
  """

  def __init__(self, split: str, data_dir: str, holdout: float):
    root = data_directory(data_dir, 'folder')
    splits = [
      n for n in ('train', 'val', 'validation', 'test') if (root / n).is_dir()
    ]
    if 'train' in splits:
      chosen = pick_split(split, splits, f'folder {root}')
      classes = scan_classes(root / 'train')
      files = classes if chosen == 'train' else scan_classes(root / chosen)
      names = sorted(classes)
      extra = sorted(set(files) - set(names))
      if extra:
        raise ValueError(
          f'{root / chosen} has classes that {root / "train"} has not: '
          f'{", ".join(extra[:10])}. A class needs training images: add '
          f'them, or remove the class from {chosen}.'
        )
      prefix = chosen + '/'
    elif splits:
      raise ValueError(
        f'{root} has {", ".join(splits)} but no train directory. Class '
        'numbers come from the training images: add train/CLASS/*.jpg, or '
        'give a flat directory of classes.'
      )
    else:
      if split not in ('train', *SPLIT_ALIASES['test']):
        raise unknown_split(split, ('train', 'test'), f'folder {root}')
      if not 0 <= holdout < 1:
        raise ValueError(f'data.holdout={holdout}: must be in [0, 1)')
      every = scan_classes(root)
      names = sorted(every)
      files = {c: _held_out(every[c], holdout, split != 'train') for c in names}
      prefix = ''
    examples = sorted(
      (hashlib.md5(path.encode()).digest(), path, label)
      for label, c in enumerate(names)
      for path in (f'{prefix}{c}/{f}' for f in files.get(c, ()))
    )
    if not examples:
      raise ValueError(
        f'{root}: the split {split!r} is empty (holdout={holdout})'
      )
    self._root = str(root)
    self._paths = [path for _, path, _ in examples]
    self._labels = np.array([label for _, _, label in examples], np.int32)
    self.num_classes, self.class_names = len(names), names
    self.name = f'folder {root} ({split})'
    self.fingerprint = fingerprint('folder', self._paths, names)

  def __len__(self):
    return len(self._paths)

  def __getitem__(self, i):
    i = checked_index(i, len(self))
    path = self.describe(i)
    if '://' in path:
      data = epath.Path(path).read_bytes()
    else:
      with open(path, 'rb') as f:
        data = f.read()
    return {'image': data, 'label': int(self._labels[i]), 'id': self._paths[i]}

  def describe(self, i: int) -> str:
    return f'{self._root}/{self._paths[i]}'


def scan_classes(root: epath.Path) -> dict[str, list[str]]:
  """{class: sorted names of its image files}, without classes that are empty.

  Raises:
    ValueError: the directory cannot be read, or holds no images of classes.
  """
  try:
    entries = sorted(p for p in root.iterdir() if not p.name.startswith('.'))
    loose = [p.name for p in entries if p.suffix.lower() in IMAGE_SUFFIXES]
    files = {}
    for directory in entries:
      if directory.name in loose or not directory.is_dir():
        continue
      images = sorted(
        p.name
        for p in directory.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith('.')
      )
      if images:
        files[directory.name] = images
  except PermissionError as e:
    raise ValueError(
      f'{e.filename}: not readable (permission denied). Give this user '
      'read access to the data.'
    ) from e
  if files:
    return files
  if loose:
    raise ValueError(
      f'{root} has {len(loose)} images but no class directories. Put them '
      f'into one directory per class: {root}/CLASS/{loose[0]}'
    )
  raise ValueError(
    f'{root} has no images: nothing matches CLASS/*'
    f'{{{",".join(IMAGE_SUFFIXES)}}} in upper or lower case'
  )


def _held_out(files: list[str], fraction: float, test: bool) -> list[str]:
  """The test files of one class, or its training files.

  At least one file is left for training; at least one is for testing, unless
  `fraction` is 0.
  """
  ordered = sorted(files, key=lambda f: hashlib.md5(f.encode()).digest())
  n = min(max(round(len(files) * fraction), int(fraction > 0)), len(files) - 1)
  return ordered[:n] if test else ordered[n:]
