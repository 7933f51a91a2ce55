"""Random data sets: folder, tar and packed data agree, or fail alike."""

import collections
import os
import shutil
import tarfile
import tempfile
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.helpers import encode, make_image
from vit_jax.data import pack
from vit_jax.data.sources.opening import open_source

IMAGES = [encode(make_image(i, 8, 9), 'PNG') for i in range(6)]
NFD = unicodedata.normalize('NFD', 'café')
FOLDERS = st.sampled_from(
  (
    *('train', 'Train', 'test', 'valid', 'val', 'a', 'b', 'B', 'x.jpg'),
    *('café', NFD, '01', '1', '.hidden', '__MACOSX', "q'uo,te;", '\udce9'),
  )
)
FILES = st.sampled_from(
  (
    *('1.png', '2.PNG', '1.jpg', '3.bmp', 'é.png', '.x.png', 'notes.txt'),
    *('no', '1.heic', '\udcff.png', 'two words.png', 'a;b,c.png', 'x.eps'),
  )
)
PATHS = st.builds(
  lambda folders, file: '/'.join([*folders, file]),
  st.lists(FOLDERS, max_size=3),
  FILES,
)
LAYOUTS = st.lists(st.tuples(PATHS, st.integers(0, 5)), min_size=1, max_size=14)


def build(root, entries):
  """Writes the files, of which a later one may be in the way of a folder."""
  for name, image in entries:
    path = os.path.join(root, name)
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as file:
        file.write(IMAGES[image])
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
      pass


def contents(out):
  """{split: classes, and how often each image is in each class}."""
  splits = {}
  for split in ('train', 'val', 'validation', 'test'):
    if os.path.exists(f'{out}/{split}.packed.json'):
      source = open_source('packed', split=split, data_dir=out)
      splits[split] = source.class_names, count(source)
  return splits


def count(source):
  return collections.Counter(
    (source.class_names[example['label']], example['image'])
    for example in source
  )


def packed(path, out):
  """What pack makes of a folder or tar; the words of the error if it fails."""
  try:
    pack.pack(path, out, threads=1)
  except ValueError as e:
    return str(e).replace(path, 'ROOT')
  return contents(out)


@settings(
  max_examples=40,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)
@given(LAYOUTS)
def test_folder_tar_and_packed_data_agree(entries):
  base = tempfile.mkdtemp()
  try:
    root = os.path.join(base, 'in')
    os.mkdir(root)
    build(root, entries)
    with tarfile.open(f'{base}/in.tar', 'w') as tar:
      tar.add(root, '.')
    from_folder = packed(root, f'{base}/folder')
    from_tar = packed(f'{base}/in.tar', f'{base}/tar')
    if isinstance(from_folder, str) and 'images but no class' in from_folder:
      # Images in no folder: those of a tar are of the class of its name.
      assert 'all images are of one class' in from_tar
      return
    assert from_tar == from_folder
    if isinstance(from_folder, str):
      return
    # The source 'folder' reads the same, in the same classes.
    source = open_source('folder', split='train', data_dir=root, holdout=0.0)
    names, images = from_folder['train']
    assert source.class_names == names
    assert count(source) == images
    for example in source:  # names can be printed and stored
      example['id'].encode()
  finally:
    shutil.rmtree(base)
