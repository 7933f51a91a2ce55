"""Sources of examples (image, label, id), read by their number.

A source is a sequence: `source[i]` gives

  image  encoded bytes (JPEG, PNG, ...), or a uint8 array (H, W, 3)
  label  an int; when the source is `multi_label` a list of ints, or a soft
         label {class: probability}
  id     a string that names the example (a path, a TFDS id, ...)

`open_source(name, split=..., data_dir=...)` opens one of

  digits      scikit-learn's 8x8 digits: 1,437 for training, 360 for testing
  folder      DIR/{train,val,test}/class/x.jpg; or DIR/class/x.jpg, of which a
              fraction is held out for testing; see `vit_jax.data.layout`
  packed      ArrayRecord shards written by `vit-jax pack` (see pack.py)
  synthetic   any number of images, a pure function of the index
  tfds:NAME   a TFDS data set prepared as array_record, read without TensorFlow
  vtab:TASK   a task of VTAB-1k (see vtab.py): a TFDS data set, or a folder or
              packed directory with the same classes

Splits take TFDS's syntax everywhere: 'train', 'train[:98%]', 'train[-500:]',
'train+validation'. The order of every split is fixed and does not follow the
classes, so that a sub-split is a random sample.
"""

from collections.abc import Sequence
import os
from typing import Any

from etils import epath
import numpy as np

from vit_jax import files
from vit_jax.data.decode import (
  DEFAULT_DECODING,
  BadImage,
  Decoding,
  decode,
)
from vit_jax.data.identity import fingerprint
from vit_jax.files import as_path


class Source(Sequence):
  """A fixed sequence of examples (see the module docstring).

  Attributes:
    name: name of the source and its split, for messages.
    num_classes: number of classes.
    class_names: names of the classes in order, or None if they have no names.
    multi_label: whether labels are lists of ints or {class: probability}.
    image_shape: (height, width) if all images have the same size, else None.
    fingerprint: a string that changes if the examples or their order change.
    checked: whether all images were decoded when the data was written, and a
      record that has changed since is noticed when it is read. Then a damaged
      image need not be searched for in every epoch.
    summary: what was read and what was left out, for a source of files.
    in_memory: whether examples are arrays that need no reading or decoding.
    lengths: number of examples of each split that the source consists of.
  """

  name: str = ''
  num_classes: int = 0
  class_names: list[str] | None = None
  multi_label: bool = False
  image_shape: tuple[int, int] | None = None
  fingerprint: str = ''
  in_memory: bool = False
  checked: bool = False
  summary: str = ''

  def earlier_fingerprint(self) -> str:
    """The fingerprint that version 0.1.0 gave these examples."""
    return self.fingerprint

  def has_fingerprint(self, stored: str) -> bool:
    """Whether a stored fingerprint is that of these examples."""
    return stored == self.fingerprint or stored == self.earlier_fingerprint()

  def describe_files(self) -> list[str]:
    """`identity.describe_list` of the files, [] for a source without files."""
    return []

  @property
  def lengths(self) -> tuple[int, ...]:
    return (len(self),)

  def describe(self, i: int) -> str:
    """The id or path of example i, even if the example cannot be read."""
    try:
      return self[i]['id']
    except Exception:  # the example may be the broken one of a message
      return f'{self.name} example {i}'

  def labels(self) -> np.ndarray | None:
    """The class numbers of all examples, int (N,).

    None for soft or several labels, and where images would have to be read.
    """
    return None

  def arrays(
    self, decoding: Decoding = DEFAULT_DECODING
  ) -> tuple[np.ndarray, np.ndarray]:
    """All examples in memory, decoded in this way.

    Returns:
      Images, uint8 (N, H, W, 3); and labels, int32 (N,), or float32 (N, C) for
      a multi-label source (multi-hot, or probabilities).

    Raises:
      ValueError: an image cannot be read, or the sizes differ.
    """
    images: np.ndarray | None = None
    labels = label_array(self, len(self))
    for i in range(len(self)):
      try:
        example = self[i]
        image = decode(example['image'], decoding)
      except BadImage as e:
        raise ValueError(
          f'{self.describe(i)}: {e}. All images of a data set that is held in '
          'memory must be readable: remove this one. A recipe can skip it '
          "instead, with data.device_cache='off'"
        ) from e
      if images is None:
        images = np.empty((len(self), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise ValueError(
          f'{example["id"]} has the size {image.shape[:2]}, the images before '
          f'it have {images.shape[1:3]}: a data set that is held in memory '
          "needs images of one size. A recipe can set data.device_cache='off'"
        )
      images[i] = image
      set_label(labels, i, example['label'])
    if images is None:
      raise ValueError(f'{self.name} has no examples')
    return images, labels


def label_array(source: Source, n: int) -> np.ndarray:
  """Zeros for n labels: int32 (n,), or float32 (n, C) for multi-label."""
  if source.multi_label:
    return np.zeros((n, source.num_classes), np.float32)
  return np.zeros((n,), np.int32)


def set_label(
  labels: np.ndarray, i: int, label: int | Sequence[int] | dict[int, float]
) -> None:
  """Writes one label into row i of an array that `label_array` made."""
  if isinstance(label, dict):
    labels[i, list(label)] = list(label.values())
  elif labels.ndim == 2:
    labels[i, np.asarray(label, np.int64)] = 1.0
  else:
    labels[i] = label


class Subset(Source):
  """Examples [start, stop) of a source."""

  def __init__(self, parent: Source, start: int, stop: int, name: str):
    self._parent, self._start, self._length = parent, start, stop - start
    self.name = name
    self.num_classes, self.class_names = parent.num_classes, parent.class_names
    self.multi_label, self.image_shape = parent.multi_label, parent.image_shape
    self.in_memory, self.summary = parent.in_memory, parent.summary
    self.checked = parent.checked
    self.fingerprint = fingerprint(parent.fingerprint, start, stop)

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    return self._parent[self._start + checked_index(i, self._length)]

  def describe(self, i: int) -> str:
    return self._parent.describe(self._start + i)

  def earlier_fingerprint(self) -> str:
    end = self._start + self._length
    return fingerprint(self._parent.earlier_fingerprint(), self._start, end)

  def describe_files(self) -> list[str]:
    return self._parent.describe_files()

  def labels(self) -> np.ndarray | None:
    labels = self._parent.labels()
    rows = slice(self._start, self._start + self._length)
    return None if labels is None else labels[rows]

  def arrays(
    self, decoding: Decoding = DEFAULT_DECODING
  ) -> tuple[np.ndarray, np.ndarray]:
    images, labels = self._parent.arrays(decoding)
    rows = slice(self._start, self._start + self._length)
    return images[rows], labels[rows]


class Concat(Source):
  """Several sources with the same classes, one after the other."""

  def __init__(self, sources: Sequence[Source], name: str):
    first = sources[0]
    self._sources = list(sources)
    self._ends = np.cumsum([len(s) for s in sources])
    self.name = name
    self.num_classes, self.class_names = first.num_classes, first.class_names
    # If one source has soft labels, the class numbers of the others become
    # one-hot rows (see `arrays`).
    self.multi_label = any(s.multi_label for s in sources)
    self.in_memory = first.in_memory
    self.checked = all(s.checked for s in sources)
    shapes = {s.image_shape for s in sources}
    self.image_shape = shapes.pop() if len(shapes) == 1 else None
    self.fingerprint = fingerprint([s.fingerprint for s in sources])

  def __len__(self):
    return int(self._ends[-1])

  @property
  def lengths(self) -> tuple[int, ...]:
    return tuple(len(s) for s in self._sources)

  def _locate(self, i: int) -> tuple[Source, int]:
    """The source of example i and the example's number in it."""
    k = int(np.searchsorted(self._ends, i, side='right'))
    return self._sources[k], i - (int(self._ends[k - 1]) if k else 0)

  def __getitem__(self, i):
    source, j = self._locate(checked_index(i, len(self)))
    return source[j]

  def describe(self, i: int) -> str:
    source, j = self._locate(i)
    return source.describe(j)

  def earlier_fingerprint(self) -> str:
    return fingerprint([s.earlier_fingerprint() for s in self._sources])

  def describe_files(self) -> list[str]:
    return [line for s in self._sources for line in s.describe_files()]

  def labels(self) -> np.ndarray | None:
    labels = [s.labels() for s in self._sources]
    known = [x for x in labels if x is not None]
    return np.concatenate(known) if len(known) == len(labels) else None

  def arrays(self, decoding: Decoding = DEFAULT_DECODING) -> Any:
    images, labels = zip(
      *(s.arrays(decoding) for s in self._sources), strict=True
    )
    if self.multi_label:
      labels = [
        x if x.ndim == 2 else np.eye(self.num_classes, dtype=np.float32)[x]
        for x in labels
      ]
    return np.concatenate(images), np.concatenate(labels)


def checked_index(i: int, length: int) -> int:
  """The index as an int in [0, length); negative ones count from the end.

  Raises:
    IndexError: there is no such example.
  """
  i = int(i)
  if not -length <= i < length:
    raise IndexError(f'there is no example {i}: the source has {length}')
  return i % length


def data_directory(data_dir: str, source: str) -> epath.Path:
  """The path of a directory of data, or for 'folder' of a tar file.

  Raises:
    ValueError: no directory is given, or it does not exist.
  """
  if not data_dir:
    raise ValueError(
      f'data.source={source!r} needs data.dir: the directory with the images'
      if source == 'folder'
      else f'data.source={source!r} needs data.dir: the directory that '
      '`vit-jax pack` wrote'
    )
  root = as_path(data_dir)
  if not root.exists():
    raise ValueError(f'data.dir={data_dir!r} does not exist')
  if not root.is_dir() and not (source == 'folder' and is_tar(root)):
    archive = files.archive_kind(root)
    raise ValueError(
      f'data.dir={data_dir!r} is {archive or "a file, not a directory"}'
    )
  return root


def is_tar(path: os.PathLike) -> bool:
  """Whether a file is taken for a tar, by its name."""
  return os.fspath(path).lower().endswith('.tar')
