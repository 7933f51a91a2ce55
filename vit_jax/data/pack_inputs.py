"""Reads the inputs of `vit-jax pack`: folders, tar files and labels files."""

import csv
import dataclasses
import json
import pathlib
import tarfile
from typing import Any

from etils import epath

from vit_jax.data.sources.folder import IMAGE_SUFFIXES, scan_classes

# A line of a CSV file with one of these words in its first cell is a header.
_CSV_HEADERS = (
  'file',
  'filename',
  'image',
  'path',
  'id',
  'name',
  'image_id',
)
Label = str | int


@dataclasses.dataclass(frozen=True)
class Item:
  """One image: a file, or `size` bytes at `offset` of a tar file.

  Attributes:
    path: the image file or the tar file.
    name: name of the image, unique in its input.
    label: name of its class, from its directory or tar; '' if there is none.
    offset: position of its first byte in the file.
    size: number of its bytes; -1 for the whole file.
  """

  path: str
  name: str
  label: str
  offset: int = 0
  size: int = -1

  def read(self) -> bytes:
    """The encoded image."""
    with open(self.path, 'rb') as f:
      f.seek(self.offset)
      return f.read(self.size)


def list_items(path: pathlib.Path, labeled: bool) -> list[Item]:
  """The images of a folder or tar file.

  Args:
    path: the folder or tar file.
    labeled: whether a labels file gives the labels. If so, the directories of a
      folder are not classes, and images are searched at any depth.

  Raises:
    ValueError: `path` is neither a folder nor a tar file, or it is a compressed
      tar, whose images cannot be read in any order.
  """
  if path.is_dir():
    if labeled:
      return [
        Item(str(p), p.relative_to(path).as_posix(), '')
        for p in path.rglob('*')
        if _is_image(p.name)
      ]
    return [
      Item(str(path / c / f), f'{c}/{f}', c)
      for c, files in scan_classes(epath.Path(path)).items()
      for f in files
    ]
  if not tarfile.is_tarfile(path):
    raise ValueError(f'{path} is neither a directory nor a tar file')
  try:
    with tarfile.open(path, 'r:') as tar:
      return _list_tar(path, tar, 0, path.name.split('.')[0])
  except tarfile.ReadError as e:
    raise ValueError(
      f'{path} is a compressed or broken tar ({e}). Images cannot be read in '
      'any order from a compressed tar: decompress it first, for example with '
      f'gunzip {path.name}'
    ) from e


def _list_tar(
  path: pathlib.Path, tar: tarfile.TarFile, base: int, stem: str
) -> list[Item]:
  """The images of a tar that starts at byte `base` of the file `path`.

  Images that are not in a directory have the class `stem`, the tar's name.
  """
  items = []
  for member in tar:
    if not member.isfile():
      continue
    name = pathlib.PurePosixPath(member.name.removeprefix('./'))
    start = base + member.offset_data
    if name.suffix.lower() == '.tar':
      with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
        items += _list_tar(path, inner, start, name.stem)
    elif _is_image(name.name):
      directory = name.parent.name
      full_name = name.as_posix() if directory else f'{stem}/{name}'
      label = directory or stem
      items.append(Item(str(path), full_name, label, start, member.size))
  return items


def _is_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def read_labels(path: pathlib.Path) -> dict[str, Label | list[Label]]:
  """Reads a JSON or CSV file to {file name: label or list of labels}.

  Raises:
    ValueError: there is no such file, or it cannot be read.
  """
  if not path.exists():
    raise ValueError(f'labels_file={path} does not exist')
  if path.suffix.lower() == '.json':
    try:
      labels = json.loads(path.read_text())
    except json.JSONDecodeError as e:
      raise ValueError(f'labels_file={path} is not JSON: {e}') from e
    if not isinstance(labels, dict):
      raise ValueError(
        f'labels_file={path}: must be an object {{"x.jpg": label or '
        f'[labels]}}, not a {type(labels).__name__}'
      )
    return labels
  labels = {}
  with path.open(newline='') as f:
    for row in csv.reader(f):
      if row and row[0].lower() not in _CSV_HEADERS:
        labels[row[0]] = _cells(row[1:])
  if all(len(v) == 1 for v in labels.values()):
    return {k: v[0] for k, v in labels.items()}
  return labels


def _cells(row: list[str]) -> list[Label]:
  """The labels of one line; commas and semicolons separate them."""
  texts = [text.strip() for cell in row for text in cell.split(';')]
  return [int(t) if t.lstrip('-').isdigit() else t for t in texts if t]


def number_labels(
  items: list[Item],
  labels: dict[str, Label | list[Label]] | None,
  classes: dict[str, Any] | None,
) -> tuple[list[list[int]], dict[str, Any]]:
  """The class numbers of each image, and the classes.

  Args:
    items: the images.
    labels: what `read_labels` returned; None if directories name the classes.
    classes: 'num_classes', 'class_names' (or None) and 'multi_label' of the
      packed training split, which the other splits must use. None takes the
      classes that occur in the labels.

  Returns:
    A list of class numbers for each image, and a dict like `classes`.

  Raises:
    ValueError: an image has no label, or a label that is not a class.
  """
  multi_label = False
  if labels is None:
    _check_directories(items, classes)
    names: list[list[Label]] = [[i.label] for i in items]
  else:
    entries = [_entry(labels, i.name) for i in items]
    missing = [i.name for i, e in zip(items, entries, strict=True) if e is None]
    if missing:
      raise ValueError(
        f'{len(missing)} of {len(items)} images have no entry in the labels '
        f'file, such as {", ".join(missing[:3])}: add them to the file, or '
        'remove the images'
      )
    multi_label = any(isinstance(e, list) for e in entries)
    names = [
      e if isinstance(e, list) else [e] for e in entries if e is not None
    ]
  if classes:
    multi_label = classes['multi_label']
    if not multi_label and any(len(n) != 1 for n in names):
      raise ValueError(
        'some images have several labels, but those of the packed split '
        "'train' have one each: pack 'train' again with lists of labels"
      )
  number, class_names = _class_numbers({x for n in names for x in n}, classes)
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


def _check_directories(items: list[Item], classes: dict | None) -> None:
  """ValueError if all images of tar files have one class, named by the tar.

  The tar then most likely has its images without class directories.
  """
  in_tar = all(i.size >= 0 for i in items)
  if in_tar and not classes and len({i.label for i in items}) == 1:
    raise ValueError(
      f'all images are of one class, {items[0].label!r}: pack a tar with '
      'class directories, one tar for each class, or give labels_file'
    )


def _class_numbers(
  labels: set[Label], classes: dict[str, Any] | None
) -> tuple[dict[Label, int], list[str] | None]:
  """{label: class number} and the class names; None if labels are numbers."""
  numbers: dict[Label, int] = {}
  if all(isinstance(x, int) for x in labels):
    limit = classes['num_classes'] if classes else float('inf')
    numbers.update((x, x) for x in labels if isinstance(x, int))
    wrong = sorted(x for x in numbers.values() if not 0 <= x < limit)
    names = classes['class_names'] if classes else None
  else:
    names = classes['class_names'] if classes else sorted(map(str, labels))
    table = {name: i for i, name in enumerate(names or ())}
    wrong = sorted(str(x) for x in labels if str(x) not in table)
    numbers.update((x, table.get(str(x), -1)) for x in labels)
  if wrong:
    raise ValueError(
      f'{len(wrong)} labels are not classes'
      + (" of the packed 'train'" if classes else '')
      + f': {", ".join(map(str, wrong[:10]))}'
    )
  return numbers, names


def _entry(labels: dict, name: str) -> Label | list[Label] | None:
  """The labels of an image, listed by its path, file name or stem."""
  path = pathlib.PurePosixPath(name)
  for key in (name, path.name, path.stem):
    if key in labels:
      return labels[key]
  return None
