"""Paths of files and directories, local ones and those of buckets (gs://).

Every path that a user gives goes through `as_path`. Files are written so that
they appear only when they are complete.
"""

from collections.abc import Iterator
import contextlib
import functools
import os
import re
import stat
import tempfile
from typing import IO

from etils import epath

from vit_jax import buckets

_REMOTE = re.compile('([a-z][a-z0-9+.-]+)://(.*)', re.DOTALL)
# First bytes of archives that are compressed.
_ARCHIVES = {
  b'PK\3\4': 'a zip archive',
  b'\x1f\x8b': 'compressed by gzip',
  b'BZh': 'compressed by bzip2',
  b'\xfd7zXZ': 'compressed by xz',
  b'\x28\xb5\x2f\xfd': 'compressed by zstd',
  b"7z\xbc\xaf'": 'a 7z archive',
  b'Rar!': 'a RAR archive',
}
# What `pathlib` makes of gs://BUCKET/NAME.
_COLLAPSED = re.compile('gs:/([^/].*)', re.DOTALL)


def as_path(path: str | os.PathLike) -> epath.Path:
  """The path of a local file or directory, or one in a bucket.

  Args:
    path: a local path, in which ~ is the home directory, or gs://BUCKET/NAME,
      also as a `pathlib.Path`.

  Raises:
    BucketError: the bucket cannot be used.
    ValueError: the path begins with another scheme, such as s3://.
  """
  text = _COLLAPSED.sub(r'gs://\1', os.fspath(path))
  remote = _REMOTE.fullmatch(text)
  if not remote:
    return epath.Path(path).expanduser()
  scheme, name = remote.groups()
  if scheme != 'gs':
    raise ValueError(
      f'{text}: allowed are local paths and gs://BUCKET/NAME, a bucket of '
      f'Google Cloud Storage. Copy the data from {scheme}:// to one of them'
    )
  buckets.connect(name.partition('/')[0])
  return epath.Path(text)


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is in a bucket."""
  text = os.fspath(path)
  return bool(_REMOTE.fullmatch(text) or _COLLAPSED.fullmatch(text))


def list_directory(path: str | os.PathLike) -> list[epath.Path]:
  """The entries of a directory; none if it does not exist.

  A bucket has no directories, only objects whose names contain '/'. An empty
  directory of a bucket does not exist, even after it has been made.
  """
  directory = as_path(path)
  try:
    # Some tools mark a directory x by an object 'x/', which is no entry of it.
    return [entry for entry in directory.iterdir() if entry != directory]
  except FileNotFoundError:
    return []


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[str]:
  """Gives the name of a local file to write, which becomes `path` at the end.

  A local file is renamed, so its temporary name is in the directory of `path`.
  For a bucket the file is uploaded as one object. A reader never sees an
  incomplete file, and if the writer is killed, the old file stays. The
  temporary name cannot be guessed, and only this user may read the file until
  it is complete.

  Args:
    path: local or remote file; its directory must exist.

  Raises:
    OSError: the file cannot be written. The temporary file is removed.
  """
  path = as_path(path)
  folder = None if is_remote(path) else os.fspath(path.parent)
  descriptor, temporary = tempfile.mkstemp(
    '.tmp', f'.{path.name[:100]}.', folder
  )
  os.close(descriptor)
  try:
    yield temporary
    if is_remote(path):
      upload(temporary, path)
    else:
      os.chmod(temporary, 0o666 & ~_umask())
      os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def upload(local: str | os.PathLike, path: str | os.PathLike) -> None:
  """Copies a local file, or a directory with all files, into a bucket.

  Every object appears when it is complete. The files of `epath` would also
  appear if an error ended their writing.
  """
  import fsspec

  filesystem, local = fsspec.filesystem('gcs'), os.fspath(local)
  target = str(as_path(path))
  if not os.path.isdir(local):
    filesystem.put_file(local, target)
    return
  for folder, _, names in os.walk(local):
    for name in names:
      file = os.path.join(folder, name)
      below = os.path.relpath(file, local).replace(os.sep, '/')
      filesystem.put_file(file, f'{target}/{below}')


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, mode: str = 'w') -> Iterator[IO]:
  """Opens a file for writing; it appears under its name when it is complete.

  Args:
    path: local or remote file, see `staged`.
    mode: 'w' for text (UTF-8), 'wb' for bytes.

  Raises:
    OSError: the file cannot be written.
    ValueError: another mode.
  """
  if mode not in ('w', 'wb'):
    raise ValueError(f"mode={mode!r}; allowed: 'w', 'wb'")
  encoding, newline = (None, None) if mode == 'wb' else ('utf-8', '')
  with (
    staged(path) as temporary,
    open(temporary, mode, encoding=encoding, newline=newline) as file,
  ):
    yield file


def write_atomically(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes text or bytes to a file, as `open_atomically` does."""
  with open_atomically(path, 'wb' if isinstance(data, bytes) else 'w') as file:
    file.write(data)


def size(path: str | os.PathLike) -> int:
  """The number of bytes of a local or remote file."""
  return as_path(path).stat().length


def read_range(path: str | os.PathLike, start: int, stop: int) -> bytes:
  """The bytes [start, stop) of a local or remote file, in one request.

  There are fewer if the file ends before.
  """
  path = as_path(path)
  if is_remote(path):
    import fsspec

    return fsspec.filesystem('gcs').cat_file(str(path), start=start, end=stop)
  with open(path, 'rb') as file:
    file.seek(start)
    return file.read(stop - start)


def create(path: str | os.PathLike, text: str) -> bool:
  """Writes a file that does not exist; False if there is one.

  Of several processes that create a file at once, one succeeds.
  """
  path = as_path(path)
  try:
    if is_remote(path):
      import fsspec

      filesystem = fsspec.filesystem('gcs')
      filesystem.pipe_file(str(path), text.encode(), mode='create')
    else:
      with open(path, 'x', encoding='utf-8') as file:
        file.write(text)
  except FileExistsError:
    return False
  return True


@functools.cache
def _umask() -> int:
  """The permissions that this process withholds from new files."""
  mask = os.umask(0o077)  # it can be read only by setting it
  os.umask(mask)
  return mask


def archive_kind(path: str | os.PathLike) -> str:
  """What a compressed archive is, and what to do; '' for any other file."""
  path = as_path(path)
  if is_remote(path) or not path.is_file():
    return ''
  with open(path, 'rb') as file:
    start = file.read(8)
  for first, kind in _ARCHIVES.items():
    if start.startswith(first):
      return (
        f'{kind}, whose files cannot be read one by one: unpack it, and give '
        'the folder'
      )
  return ''


def check_regular(path: str | os.PathLike) -> None:
  """Raises OSError if a file does not exist, or is a pipe, socket or device.

  Those are not opened, because opening or reading one may never return. Remote
  files are not checked.
  """
  if is_remote(path):
    return
  kind = special_kind(os.stat(path).st_mode)
  if kind:
    raise OSError(f'{kind}, not a regular file')


def check_size(size: int, limit: int) -> None:
  """Raises OSError for a size, in bytes, above a limit.

  A file can claim any size without taking space on the disk.
  """
  if size > limit:
    raise OSError(f'{size:,} bytes, which is more than the limit of {limit:,}')


def read_regular(path: str | os.PathLike, limit: int | None = None) -> bytes:
  """The bytes of a local or remote file.

  Args:
    path: of the file.
    limit: the largest size of a local file, in bytes; None for any.

  Raises:
    OSError: see `check_regular`, or the file is larger.
  """
  check_regular(path)
  if is_remote(path):
    return as_path(path).read_bytes()
  if limit is not None:
    check_size(os.stat(path).st_size, limit)
  with open(path, 'rb') as file:
    return file.read()


def read_text(path: str | os.PathLike, errors: str = 'strict') -> str:
  """The text, in UTF-8, of a local or remote file.

  Args:
    path: of the file.
    errors: what becomes of bytes that are not UTF-8, as in `bytes.decode`.

  Raises:
    OSError: see `check_regular`; the message names the file.
    UnicodeDecodeError: it is not UTF-8.
  """
  try:
    return read_regular(path).decode(errors=errors)
  except OSError as e:
    if e.filename is None:
      raise OSError(f'{os.fspath(path)}: {e}') from e
    raise


def special_kind(mode: int) -> str:
  """What a file of `os.stat(...).st_mode` is; '' for a regular file."""
  if stat.S_ISREG(mode):
    return ''
  for is_kind, name in (
    (stat.S_ISDIR, 'a directory'),
    (stat.S_ISFIFO, 'a named pipe'),
    (stat.S_ISSOCK, 'a socket'),
  ):
    if is_kind(mode):
      return name
  return 'a device'
