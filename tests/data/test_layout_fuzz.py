"""Random data sets: folder, tar, packed data and pipeline agree."""

import collections
import csv
import os
import pathlib
import shutil
import tarfile
import tempfile
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.helpers import encode, make_image
from vit_jax.data import pack
from vit_jax.data.names import normalized, printable
from vit_jax.data.pack_beam import Runner, write_task
from vit_jax.data.sources.opening import open_source

IMAGES = [encode(make_image(i, 8, 9), 'PNG') for i in range(6)]
BROKEN = b'\xff\xd8\xff no image'
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
LAYOUTS = st.lists(
  st.tuples(PATHS, st.sampled_from(IMAGES * 3 + [BROKEN])),
  min_size=1,
  max_size=14,
)


def build(root, entries):
  """Writes the files, of which a later one may be in the way of a folder."""
  for name, image in entries:
    path = os.path.join(root, name)
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as file:
        file.write(image)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
      pass


def tar_of_files(root, path):
  """A tar without entries for folders, but for those that are empty."""
  with tarfile.open(path, 'w') as tar:
    for folder, folders, names in os.walk(root):
      for name in names if names or folders else ['']:
        file = os.path.join(folder, name)
        tar.add(file, os.path.relpath(file, root), recursive=False)


class Workers(Runner):
  """The work of a pipeline, without Beam: each task alone, the last first."""

  def __post_init__(self):
    pass

  def run_tasks(self, tasks):
    for task in reversed(tasks):
      write_task(*task)


def contents(out):
  """{split: classes, and how often each image is in each class}."""
  splits = {}
  for split in ('train', 'val', 'validation', 'test'):
    if os.path.exists(f'{out}/{split}.packed.json'):
      source = open_source('packed', split=split, data_dir=out)
      splits[split] = source.class_names, count(source)
  return splits


def count(source, decodable=False):
  names = source.class_names or range(source.num_classes)
  return collections.Counter(
    (names[example['label']], example['image'])
    for example in source
    if not decodable or example['image'] != BROKEN
  )


def packed(path, out, **options):
  """What pack makes of a folder or tar; the words of the error if it fails."""
  try:
    pack.pack(path, out, threads=1, shards=2, **options)
  except ValueError as e:
    return str(e).replace(path, 'ROOT')
  return contents(out)


def bytes_of(out):
  return {path.name: path.read_bytes() for path in pathlib.Path(out).iterdir()}


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
    tar_of_files(root, f'{base}/files.tar')
    from_files = packed(f'{base}/files.tar', f'{base}/files')
    if isinstance(from_folder, str) and 'images but no class' in from_folder:
      # Images in no folder: those of a tar are of the class of its name.
      assert 'all images are of one class' in from_tar
      return
    assert from_tar == from_files == from_folder
    if isinstance(from_folder, str):
      return
    # The source 'folder' reads the same, in the same classes.
    assert packed(root, f'{base}/pipeline', runner=Workers('')) == from_folder
    assert bytes_of(f'{base}/pipeline') == bytes_of(f'{base}/folder')
    source = open_source('folder', split='train', data_dir=root, holdout=0.0)
    names, images = from_folder['train']
    assert source.class_names == names
    assert count(source, decodable=True) == images
    for example in source:  # names can be printed and stored
      example['id'].encode()
  finally:
    shutil.rmtree(base)


LABELS = st.sampled_from(
  ('cat', 'Cat', '1', '01', '7', '1.0', 'caf\u00e9', NFD, 'a b', 'nan', '')
)


@settings(
  max_examples=40,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)
@given(
  LAYOUTS,
  st.lists(LABELS, min_size=14, max_size=14),
  st.sampled_from((',', ';', '\t')),
  st.sampled_from(('', 'file,label')),
  st.sampled_from(('utf-8', 'utf-8-sig', 'utf-16')),
  st.booleans(),
)
def test_folder_and_tar_agree_with_a_file_of_labels(
  entries, labels, delimiter, title, encoding, paths
):
  """Every image is packed with the label of its line, or there is an error."""
  base = tempfile.mkdtemp()
  try:
    root = os.path.join(base, 'in')
    os.mkdir(root)
    build(root, entries)
    with tarfile.open(f'{base}/in.tar', 'w') as tar:
      tar.add(root, '.')
    given_labels = {}
    with open(f'{base}/labels.csv', 'w', encoding=encoding, newline='') as file:
      table = csv.writer(file, delimiter=delimiter)
      if title:
        table.writerow(title.split(','))
      for (name, _), label in zip(entries, labels, strict=False):
        name = printable(name if paths else name.rpartition('/')[2])
        if given_labels.setdefault(name, label) == label:
          table.writerow([name, label])
    options = {'labels_file': f'{base}/labels.csv'}
    from_folder = packed(root, f'{base}/folder', **options)
    from_tar = packed(f'{base}/in.tar', f'{base}/tar', **options)
    assert sorted(from_tar) == sorted(from_folder)
    if isinstance(from_folder, str):
      return
    assert bytes_of(f'{base}/tar') == bytes_of(f'{base}/folder')
    packed(root, f'{base}/pipeline', runner=Workers(''), **options)
    assert bytes_of(f'{base}/pipeline') == bytes_of(f'{base}/folder')
    for split in from_folder:
      source = open_source('packed', split=split, data_dir=f'{base}/folder')
      for example in source:
        # The label of the line; numbers are numbers if all of them are.
        label = example['label']
        names = source.class_names
        shown = names[label] if names else str(label)
        name = example['id']
        lines = {
          normalized(line).removesuffix('.0')
          for key, line in given_labels.items()
          if normalized(key).rpartition('/')[2] == name.rpartition('/')[2]
          or pathlib.PurePosixPath(key).name == pathlib.PurePosixPath(name).stem
        }
        assert shown.removesuffix('.0') in lines
  finally:
    shutil.rmtree(base)
