"""Lists the images of folders and tar files, and counts all other files.

Nothing is decoded, so that a million files are listed in seconds. Files are
images by their suffix. Hidden files and folders, and whatever is not a regular
file, are left out; every kind that is left out is counted.
"""

import collections
from collections.abc import Callable, Iterator
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import posixpath
import tarfile
from typing import Any

from etils import epath

from vit_jax import files, text
from vit_jax.data.decode import image_suffixes, missing_plugin
from vit_jax.data.headers import MAX_BYTES
from vit_jax.data.names import is_hidden, printable

log = logging.getLogger(__name__)

_MOST_NESTED_TARS = 3  # a tar of tars, as ImageNet comes, is one
SIDECARS = ('.cls', '.json')  # files beside images, of webdataset
_MOST_LINKS = 100_000  # to folders
_DEEPEST = 100  # folders within one another
_LONGEST_SUFFIX = 8  # longer ones are not counted one by one


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """An image: a file, or `size` bytes at `offset` of a tar file.

  Attributes:
    name: path below the root of the listing, with '/', printable.
    path: of the file to read.
    size: in bytes; -1 where it is not known.
    offset: of the first byte in a tar file; -1 for a whole file.
  """

  name: str
  path: str
  size: int = -1
  offset: int = -1

  def read(self) -> bytes:
    """The encoded image; OSError if it cannot be read."""
    if self.offset < 0:
      return files.read_regular(self.path, MAX_BYTES)
    files.check_size(self.size, MAX_BYTES)
    return files.read_range(self.path, self.offset, self.offset + self.size)


@dataclasses.dataclass
class Listing:
  """What is in a folder or tar file.

  Attributes:
    root: the folder or tar file.
    files: its images, in no particular order.
    folders: names of all folders, as the names of files are given.
    skipped: how many files of each kind are no images.
    sidecars: those of them that may hold the label of an image, by name.
    flat_tars: names of the folders that stand for tars without folders.
    links: how many links to folders were followed.
  """

  root: str
  files: list[File] = dataclasses.field(default_factory=list)
  folders: set[str] = dataclasses.field(default_factory=set)
  skipped: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  sidecars: dict[str, File] = dataclasses.field(default_factory=dict)
  flat_tars: set[str] = dataclasses.field(default_factory=set)
  links: int = 0

  def skip(self, name: str, file: File | None = None) -> None:
    """Counts a file that is no image, by its suffix."""
    suffix = posixpath.splitext(name)[1].lower()
    if file is not None and suffix in SIDECARS:
      self.sidecars[name] = file
    if not suffix:
      self.skipped['without a suffix'] += 1
    elif len(suffix) > _LONGEST_SUFFIX or not suffix.isprintable():
      self.skipped['with another suffix'] += 1
    else:
      package = missing_plugin(suffix)
      self.skipped[suffix + (f' (install {package})' if package else '')] += 1


def is_image_name(name: str) -> bool:
  """Whether a file is taken for an image, by its name."""
  return name.lower().endswith(image_suffixes())


def list_images(
  path: str | os.PathLike | epath.Path, *, tars: bool = True
) -> Listing:
  """The images of a folder, at any depth, or of a tar file.

  Args:
    path: a local or remote folder, or a local tar file.
    tars: list the contents of tar files in the folder, as of folders.

  Raises:
    ValueError: it is neither, a tar that cannot be read at random, or a folder
      that this user may not read.
  """
  root = files.as_path(path)
  listing = Listing(str(path))
  if not root.is_dir():
    _list_tar_file(listing, str(path), '')
  elif files.is_remote(path):
    _list_remote(listing, root, '')
  else:
    try:
      _list_folder(listing, os.fspath(path), '', tars, ())
    except PermissionError as e:
      raise ValueError(
        f'{e.filename}: not readable (permission denied). Give this user '
        'read access to the data.'
      ) from e
  return listing


def in_words(skipped: collections.Counter[str]) -> str:
  """'3 .heic (install pillow-heif), 1 .txt', the most frequent first."""
  return ', '.join(
    f'{n:,} {kind}'
    for kind, n in sorted(skipped.items(), key=lambda x: (-x[1], x[0]))
    if n
  )


@functools.cache
def report(summary: str, complete: bool) -> None:
  """Logs what was read, once in a process; a warning if images are left out."""
  log.log(logging.INFO if complete else logging.WARNING, '%s', summary)


def _list_folder(
  listing: Listing,
  folder: str,
  prefix: str,
  tars: bool,
  above: tuple[tuple[int, int], ...],
) -> None:
  """Adds a local folder; `above` identifies the folders that hold it."""
  status = os.stat(folder)
  above = (*above, (status.st_dev, status.st_ino))
  if len(above) > _DEEPEST:
    raise ValueError(
      f'{listing.root} has folders within more than {_DEEPEST} others, such as '
      f'{prefix[:80]}...: give the folder that has the images'
    )
  with os.scandir(folder) as entries:
    for entry in entries:
      name = prefix + printable(entry.name)
      if is_hidden(entry.name):
        listing.skipped['hidden'] += 1
      elif _is_kind(entry.is_dir):
        if entry.is_symlink() and _identity(entry) in above:
          listing.skipped['link to a folder that holds it'] += 1
          continue
        listing.links += entry.is_symlink()
        if listing.links > _MOST_LINKS:
          raise ValueError(
            f'{listing.root} has more than {_MOST_LINKS:,} links to folders, '
            f'such as {name}: links within linked folders multiply; remove them'
          )
        listing.folders.add(name)
        _list_folder(listing, entry.path, name + '/', tars, above)
      elif is_image_name(entry.name):
        _add_file(listing, entry, name)
      elif (
        tars and entry.name.lower().endswith('.tar') and _is_kind(entry.is_file)
      ):
        _list_tar_file(listing, entry.path, prefix)
      else:
        listing.skip(name, File(name, entry.path))


def _is_kind(question: Callable[[], bool]) -> bool:
  """The answer of an `os.DirEntry`; False for a link that leads nowhere."""
  try:
    return question()
  except PermissionError:
    raise
  except OSError:  # a link to itself
    return False


def _identity(entry: os.DirEntry) -> tuple[int, int]:
  status = entry.stat()
  return status.st_dev, status.st_ino


def _add_file(listing: Listing, entry: os.DirEntry, name: str) -> None:
  """Adds a file with the suffix of an image, if it is a regular one."""
  try:
    status = entry.stat()
  except OSError:
    listing.skipped['broken link'] += 1
    return
  kind = files.special_kind(status.st_mode)
  if kind:
    listing.skipped[kind.removeprefix('a ')] += 1
  else:
    listing.files.append(File(name, entry.path, status.st_size))


def _list_remote(listing: Listing, folder: epath.Path, prefix: str) -> None:
  """Adds a remote folder. Each question about a path is a request, so names
  with the suffix of an image are taken for files, of unknown size."""
  for path in folder.iterdir():
    name = prefix + path.name
    if is_hidden(path.name):
      listing.skipped['hidden'] += 1
    elif is_image_name(path.name):
      listing.files.append(File(name, str(path)))
    elif path.is_dir():
      listing.folders.add(name)
      _list_remote(listing, path, name + '/')
    else:
      listing.skip(name)


def _list_tar_file(listing: Listing, path: str, prefix: str) -> None:
  """Adds the contents of a tar file under the name `prefix`."""
  try:
    kind = files.special_kind(os.stat(path).st_mode)
    is_tar = not kind and tarfile.is_tarfile(path)
  except OSError as e:
    kind = 'it does not exist' if isinstance(e, FileNotFoundError) else str(e)
    is_tar = False
  if not is_tar:
    what = 'neither a folder nor a tar file' + (f' ({kind})' if kind else '')
    what = what if kind else files.archive_kind(path) or what
    raise ValueError(f'{path} is {what}')
  try:
    with tarfile.open(path, 'r:', encoding='utf-8') as tar:
      stem = printable(pathlib.Path(path).name.split('.')[0])
      _list_tar(
        listing, _Tar(path, tar, 0, os.path.getsize(path), stem), prefix
      )
  except Exception as e:  # Python's reader raises anything for damaged headers
    what = f'a broken tar ({text.shortened(e)}): copy it again'
    raise ValueError(f'{path} is {files.archive_kind(path) or what}') from e


@dataclasses.dataclass(frozen=True)
class _Tar:
  """An open tar file that is bytes [start, stop) of the file `path`."""

  path: str
  tar: tarfile.TarFile
  start: int
  stop: int
  stem: str  # its name without the suffix
  depth: int = 0


def _list_tar(listing: Listing, tar: _Tar, prefix: str) -> None:
  """Adds the contents of an open tar.

  Images that are in no folder of it get the name of the tar as their folder, if
  all of its images are so: the tars of ImageNet hold one class each.
  """
  own = Listing(listing.root)
  members: dict[str, File] = {}
  links: list[tuple[str, str]] = []
  for member, name in _members(own, tar.tar):
    start = tar.start + member.offset_data
    if member.isdir():
      own.folders.add(name)
    elif member.islnk() or member.issym():
      target = member.linkname
      if member.issym():
        target = posixpath.join(posixpath.dirname(name), target)
      links.append((name, printable(posixpath.normpath(target)).lstrip('/')))
    elif not member.isreg() or member.issparse():
      own.skipped['special file'] += 1
    elif start + member.size > tar.stop or member.size < 0:
      raise tarfile.ReadError(f'{name} reaches past the end of the file')
    elif name.lower().endswith('.tar'):
      _list_inner_tar(own, tar, member, name)
    elif is_image_name(name):
      # The last of several members of one name counts, as when extracting.
      members[name] = File(name, tar.path, member.size, start)
    else:
      own.skip(name, File(name, tar.path, member.size, start))
  _check_end(own, tar)
  for name, target in links:
    inside = [x for x in members if x.startswith(target + '/')]
    if name.startswith(target + '/'):
      own.skipped['link to a folder that holds it'] += 1
    elif inside or target in own.folders:  # as in a folder: read again
      own.folders.add(name)
      for x in inside:
        copy = name + x.removeprefix(target)
        members[copy] = dataclasses.replace(members[x], name=copy)
    elif not is_image_name(name):
      own.skip(name)
    elif target in members:
      members[name] = dataclasses.replace(members[target], name=name)
    else:
      own.skipped['broken link'] += 1
  own.files += members.values()
  flat = bool(own.files) and not any('/' in file.name for file in own.files)
  inside = prefix + (f'{tar.stem}/' if flat else '')
  listing.files += [
    dataclasses.replace(file, name=inside + file.name) for file in own.files
  ]
  listing.sidecars |= {inside + x: file for x, file in own.sidecars.items()}
  listing.flat_tars |= {inside + x for x in own.flat_tars}
  listing.flat_tars |= {inside[:-1]} if flat else set()
  listing.folders |= {inside + name for name in own.folders}
  listing.folders |= {inside[:-1]} if flat else set()
  listing.skipped += own.skipped


def _above(name: str) -> Iterator[str]:
  """The folders in which a file of a tar is, down to one that is hidden."""
  folders = name.split('/')[:-1]
  visible = itertools.takewhile(lambda x: not is_hidden(x), folders)
  return itertools.accumulate(visible, '{}/{}'.format)


def _check_end(listing: Listing, tar: _Tar) -> None:
  """Raises ReadError for a tar that is cut short or broken in its middle.

  Python's reader stops there without an error. A whole tar ends with a block of
  zeros.
  """
  with open(tar.path, 'rb') as file:
    file.seek(tar.start + tar.tar.offset)
    block = file.read(max(0, min(tarfile.BLOCKSIZE, tar.stop - file.tell())))
  if not block:
    listing.skipped['end mark (the tar may be cut short)'] += 1
  elif len(block) < tarfile.BLOCKSIZE or any(block):
    raise tarfile.ReadError(
      f'it is cut short or broken at byte {tar.start + tar.tar.offset}'
    )


def _list_inner_tar(
  own: Listing, outer: _Tar, member: tarfile.TarInfo, name: str
) -> None:
  """Adds a tar that is a member of another."""
  if outer.depth == _MOST_NESTED_TARS:
    raise tarfile.ReadError(
      f'{name} is a tar within more than {_MOST_NESTED_TARS} others'
    )
  start = outer.start + member.offset_data
  folder, base = posixpath.split(name)
  with tarfile.open(
    fileobj=outer.tar.extractfile(member), mode='r:', encoding='utf-8'
  ) as tar:
    inner = _Tar(
      outer.path,
      tar,
      start,
      start + member.size,
      base[: -len('.tar')],
      outer.depth + 1,
    )
    _list_tar(own, inner, folder + '/' if folder else '')


def _members(
  listing: Listing, tar: tarfile.TarFile
) -> Iterator[tuple[tarfile.TarInfo, str]]:
  """The members that are not hidden, with their printable names."""
  position = -1
  while (member := tar.next()) is not None:
    if tar.offset <= position:  # a negative size would be read for ever
      raise tarfile.ReadError(f'{printable(member.name)} has a negative size')
    position = tar.offset
    archive: Any = tar
    archive.members.clear()  # else all of them stay in memory
    name = printable(posixpath.normpath(member.name)).lstrip('/')
    if name == '.':  # the folder itself, as `tar -C folder .` stores it
      continue
    if name.startswith('../'):
      listing.skipped['with a path that leaves the tar'] += 1
      continue
    listing.folders.update(_above(name))  # a tar need not have its folders
    if any(is_hidden(component) for component in name.split('/')):
      listing.skipped['hidden'] += member.isreg()
    else:
      yield member, name
