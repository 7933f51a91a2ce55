"""The 19 tasks of VTAB-1k (arXiv:1910.04867) as sources: 'vtab:TASK'.

A task is a TFDS data set with splits 'train', 'val' and 'test' of its own, and
with a label that some tasks compute from other features. The definitions are
those of the benchmark's released code (google-research/task_adaptation).

Splits of a task are called 'train', 'val', 'trainval' and 'test'. A number
takes the first images: 'train800', 'val200', and VTAB-1k's training images
'train800val200'. First means in TFDS's order, which is the same for every file
format.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import re
from typing import Any

from etils import epath
import numpy as np

from vit_jax.data.listing import is_image_name
from vit_jax.data.records import META_SUFFIX
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.packed import Packed
from vit_jax.data.sources.slices import open_slices
from vit_jax.data.sources.source import Concat, Source, Subset, is_tar
from vit_jax.data.sources.tfds import Labels, Tfds
from vit_jax.data.splits import NoSplit
from vit_jax.files import as_path

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """A task of VTAB.

  Attributes:
    group: 'natural', 'specialized' or 'structured'.
    data: name of the TFDS data set.
    classes: number of classes.
    train, val, test: its splits, as sub-splits of those of the data set.
    labels: the feature that is the label, if it is not called 'label', or
      how the label is computed.
  """

  group: str
  data: str
  classes: int
  train: str = 'train'
  val: str = 'validation'
  test: str = 'test'
  labels: Labels | str | None = None


def _held_out(percent: int, test: str = 'test') -> dict[str, str]:
  """The splits of a data set whose 'train' has to give the split 'val'."""
  return {
    'train': f'train[:{percent}%]',
    'val': f'train[{percent}%:]',
    'test': test,
  }


def _only_train(percent: int, val_percent: int) -> dict[str, str]:
  """The splits of a data set that has nothing but 'train'."""
  end = percent + val_percent
  return {
    'train': f'train[:{percent}%]',
    'val': f'train[{percent}%:{end}%]',
    'test': f'train[{end}%:]',
  }


def last_above(value: float, thresholds: tuple[float, ...]) -> int:
  """The number of the last of increasing thresholds that is below a value."""
  limits = np.array(thresholds, np.float32)
  return int(np.searchsorted(limits, np.float32(value))) - 1


def count_objects(example: Example) -> int:
  """CLEVR: the number of objects, of which a picture has 3 to 10."""
  return len(example['objects']['size']) - 3


# Distances from the camera at which the classes of a distance begin.
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
_NO_VEHICLE = 1000.0  # the distance that stands for a road without vehicles


def closest_object(example: Example) -> int:
  """CLEVR: the distance of the closest object, in 6 ranges."""
  distances = np.asarray(example['objects']['pixel_coords'])[:, 2]
  return last_above(distances.min(), CLEVR_DISTANCES)


def closest_vehicle(example: Example) -> int:
  """KITTI: the distance of the closest car, van or truck, in 3 ranges.

  A fourth class is for pictures without such a vehicle.
  """
  objects = example['objects']
  vehicles = np.asarray(objects['type']) < 3  # car, van, truck
  distances = np.reshape(objects['location'], (-1, 3))[:, 2][vehicles]
  return last_above(min([_NO_VEHICLE, *distances]), KITTI_DISTANCES)


def bin_of(example: Example, feature: str, values: int, bins: int) -> int:
  """A label of `values` values in `bins` classes of neighboring values."""
  return int(example[feature] // (values / bins))


def _bins(feature: str, values: int, bins: int = 16) -> Labels:
  """dSprites: a label in 16 classes; the stored pixels are 0 and 1."""
  return Labels(
    tuple(f'{feature.removeprefix("label_")} {i}' for i in range(bins)),
    functools.partial(bin_of, feature=feature, values=values, bins=bins),
    pixel_factor=255,
  )


_NORB = {'val': 'test[:50%]', 'test': 'test[50%:]'}
TASKS: dict[str, Task] = {
  'caltech101': Task('natural', 'caltech101', 102, **_held_out(90)),
  'cifar100': Task('natural', 'cifar100', 100, **_held_out(90)),
  'dtd': Task('natural', 'dtd', 47),
  'flowers102': Task('natural', 'oxford_flowers102', 102),
  'pets': Task('natural', 'oxford_iiit_pet', 37, **_held_out(80)),
  'sun397': Task('natural', 'sun397/tfds', 397),
  'svhn': Task('natural', 'svhn_cropped', 10, **_held_out(90)),
  'patch_camelyon': Task('specialized', 'patch_camelyon', 2),
  'eurosat': Task('specialized', 'eurosat/rgb', 10, **_only_train(60, 20)),
  'resisc45': Task('specialized', 'resisc45', 45, **_only_train(60, 20)),
  'retinopathy': Task(
    'specialized', 'diabetic_retinopathy_detection/btgraham-300', 5
  ),
  'clevr_count': Task(
    'structured',
    'clevr',
    8,
    **_held_out(90, 'validation'),
    labels=Labels(tuple(f'{n} objects' for n in range(3, 11)), count_objects),
  ),
  'clevr_distance': Task(
    'structured',
    'clevr',
    6,
    **_held_out(90, 'validation'),
    labels=Labels(
      ('up to 8', 'to 8.5', 'to 9', 'to 9.5', 'to 10', 'above 10'),
      closest_object,
    ),
  ),
  'dmlab': Task('structured', 'dmlab', 6),
  'dsprites_location': Task(
    'structured',
    'dsprites',
    16,
    **_only_train(80, 10),
    labels=_bins('label_x_position', 32),
  ),
  'dsprites_orientation': Task(
    'structured',
    'dsprites',
    16,
    **_only_train(80, 10),
    labels=_bins('label_orientation', 40),
  ),
  'kitti_distance': Task(
    'structured',
    'kitti',
    4,
    labels=Labels(
      ('up to 8 m', '8 to 20 m', 'above 20 m', 'no vehicle'), closest_vehicle
    ),
  ),
  'smallnorb_azimuth': Task(
    'structured',
    'smallnorb',
    18,
    **_NORB,
    labels='label_azimuth',
  ),
  'smallnorb_elevation': Task(
    'structured',
    'smallnorb',
    9,
    **_NORB,
    labels='label_elevation',
  ),
}


def find_task(name: str) -> Task:
  """The task of a name; ValueError with the names if there is none."""
  if name in TASKS:
    return TASKS[name]
  near = difflib.get_close_matches(name, TASKS, n=1)
  raise ValueError(
    f'unknown VTAB task {name!r}'
    + (f': did you mean {near[0]!r}?' if near else '.')
    + f' Tasks: {", ".join(TASKS)}'
  )


def open_task(
  name: str, split: str, data_dir: str, flat: bool = False
) -> Source:
  """Opens a split of a task.

  Args:
    name: a key of TASKS.
    split: see the module docstring.
    data_dir: data_dir of TFDS, or a folder or tar of class directories, or what
      `vit-jax pack` wrote. Of the last two the class names are the labels, and
      the splits are made as those of the TFDS data set.
    flat: take every folder for a class, also one named 'train'.

  Raises:
    ValueError: there is no such task or split, the data set is not prepared, a
      split has fewer images than are taken, or other images than those of the
      task.
  """
  task = find_task(name)
  kind = _kind(data_dir, task)
  if kind == 'tfds':
    open_one = lambda s: Tfds(task.data, s, data_dir, task.labels)
  elif kind == 'packed':
    open_one = lambda s: Packed(s, data_dir)
  else:
    open_one = lambda s: Folder(s, data_dir, 0.0, flat)
  wanted = [
    (getattr(task, key), key, count) for key, count in _read_split(split, name)
  ]
  slices = []
  for text, key, count in wanted:
    source = open_slices(text, open_one)
    if key == 'val' and kind != 'tfds':
      _check_val(source, task, open_one, data_dir)
    if count and len(source) < count:
      raise ValueError(
        f'vtab:{name}: the split {split!r} takes the first {count} images of '
        f'{text}, and {source.name} has {len(source)}. Take fewer, such as '
        f'{re.sub("[0-9]+", lambda m: str(int(m[0]) // 2), split)!r}'
      )
    slices.append(Subset(source, 0, count, source.name) if count else source)
  source = slices[0] if len(slices) == 1 else Concat(slices, '')
  if source.num_classes != task.classes:
    raise ValueError(
      f'vtab:{name} has {task.classes} classes, and {data_dir} has '
      f'{source.num_classes}: give the images of this data set ({task.data})'
    )
  source.name = f'vtab:{name}/{split}'
  return source


def _read_split(split: str, name: str) -> list[tuple[str, int]]:
  """'train800val200' -> [('train', 800), ('val', 200)]; 0 is all images."""
  split = {'validation': 'val'}.get(split, split)
  if split == 'test':
    return [('test', 0)]
  match = re.fullmatch(r'(train([1-9]\d*)?)?(val([1-9]\d*)?)?', split)
  if not split or not match:
    raise NoSplit(
      f'vtab:{name} has no split {split!r}; it has train, val, trainval, test, '
      'and the first images of the first two, such as train800val200'
    )
  result = [('train', int(match[2] or 0))] if match[1] else []
  return result + ([('val', int(match[4] or 0))] if match[3] else [])


def _kind(data_dir: str, task: Task) -> str:
  """'tfds', 'packed' or 'folder'."""
  root = as_path(data_dir) if data_dir else None
  if root is None or not root.is_dir():
    return 'folder' if root is not None and is_tar(root) else 'tfds'
  if (root / task.data).is_dir():
    return 'tfds'
  if any(p.name.endswith(META_SUFFIX) for p in root.iterdir()):
    return 'packed'
  return 'folder' if _has_images(root, 3) else 'tfds'


def _has_images(folder: epath.Path, depth: int) -> bool:
  """Whether the first folders of a folder have an image, at most so deep."""
  folders = []
  for path in sorted(folder.iterdir()):
    if is_image_name(path.name):
      return True
    if depth > 1 and path.is_dir():
      folders.append(path)
  return any(_has_images(path, depth - 1) for path in folders[:3])


def _check_val(source: Source, task: Task, open_one: Any, data: str) -> None:
  """ValueError if the split 'validation' of a folder is its test images.

  'validation' and 'test' stand for one another where a folder has only one.
  """
  if task.val == 'validation':
    test = open_slices(task.test, open_one)
    if test.fingerprint == source.fingerprint:
      raise ValueError(
        f'{data} has no split besides train and test, and this task takes some '
        'of its training images from a third one: add the folder val/'
      )
