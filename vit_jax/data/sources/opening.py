"""Opens a source by its name."""

import difflib

from vit_jax import files
from vit_jax.data.records import META_SUFFIX
from vit_jax.data.sources.digits import Digits
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.packed import Packed
from vit_jax.data.sources.slices import open_slices
from vit_jax.data.sources.source import Source, is_tar
from vit_jax.data.sources.synthetic import Synthetic
from vit_jax.data.sources.tfds import Tfds
from vit_jax.data.sources.vtab import open_task
from vit_jax.files import as_path

SOURCES = (
  'digits',
  'folder',
  'packed',
  'synthetic',
  'tfds:NAME',
  'vtab:TASK',
)


def open_source(
  name: str,
  *,
  split: str,
  data_dir: str = '',
  holdout: float = 0.1,
  flat: bool = False,
  num_classes: int | None = None,
  num_examples: int | None = None,
  image_size: tuple[int, int] = (224, 224),
) -> Source:
  """Opens a source of examples.

  Args:
    name: one of `SOURCES`.
    split: a split or sub-split in TFDS's syntax, such as 'train[:98%]'.
    data_dir: the directory of 'folder' or 'packed', or TFDS's data_dir; for
      'vtab:TASK' any of the three.
    holdout: fraction held out as the split 'test', for a 'folder' that has
      classes but no train directory.
    flat: take every folder of 'folder' for a class, also one named 'train'.
    num_classes: number of classes of 'synthetic'; None for 10.
    num_examples: number of images of 'synthetic'; None for 1024.
    image_size: (height, width) of the images of 'synthetic'.

  Raises:
    ValueError: the name, the split or the directory is wrong; the message says
      what to change.
  """
  if name == 'digits':
    open_one = Digits
  elif name == 'folder':
    open_one = lambda s: Folder(s, data_dir, holdout, flat)
  elif name == 'packed':
    open_one = lambda s: Packed(s, data_dir)
  elif name == 'synthetic':
    open_one = lambda s: Synthetic(
      s, num_examples or 1024, num_classes or 10, image_size
    )
  elif name.startswith('tfds:') and name != 'tfds:':
    open_one = lambda s: Tfds(name.removeprefix('tfds:'), s, data_dir)
  elif name.startswith('vtab:'):
    open_one = lambda s: open_task(
      name.removeprefix('vtab:'), s, data_dir, flat
    )
  else:
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    raise ValueError(
      f'unknown data source {name!r}'
      + (f': did you mean {near[0]!r}?' if near else '.')
      + f' Sources: {", ".join(SOURCES)}'
    )
  return open_slices(split, open_one)


def directory_source(path: str) -> str:
  """'packed' for a directory that `vit-jax pack` wrote, else 'folder'.

  A tar file is read as the folder that it was made from.

  Raises:
    ValueError: `path` is neither.
  """
  directory = as_path(path)
  if directory.is_file() and is_tar(directory):
    return 'folder'
  if archive := files.archive_kind(directory):
    raise ValueError(f'{path} is {archive}')
  if not directory.is_dir():
    problem = 'is no directory' if directory.exists() else 'does not exist'
    raise ValueError(
      f'{path} {problem}. Give a folder with one directory of images per class '
      '(or train/ and test/ with them), a tar of it, or a packed data set'
    )
  packed = any(p.name.endswith(META_SUFFIX) for p in directory.iterdir())
  return 'packed' if packed else 'folder'
