"""Writes files that appear only when they are complete."""

from collections.abc import Iterator
import contextlib
import os
import stat
from typing import IO
import uuid

from etils import epath


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike, mode: str = 'w') -> Iterator[IO]:
  """Opens a file for writing; it appears under its name when it is complete.

  A local file is written under a temporary name beside `path` and renamed at
  the end. A reader never sees an incomplete file, and if the writer is killed,
  the old file stays. An object store shows a file only when it is complete, so
  it needs no temporary name.

  Args:
    path: local or remote file; its directory must exist.
    mode: 'w' for text (UTF-8), 'wb' for bytes.

  Raises:
    OSError: the file cannot be written. The temporary file is removed.
    ValueError: another mode.
  """
  if mode not in ('w', 'wb'):
    raise ValueError(f"mode={mode!r}; allowed: 'w', 'wb'")
  path = epath.Path(path)
  if '://' in str(path):
    with path.open(mode) as file:
      yield file
    return
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
  binary = mode == 'wb'
  try:
    with open(
      temporary,
      mode,
      encoding=None if binary else 'utf-8',
      newline=None if binary else '',
    ) as file:
      yield file
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def write_atomically(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes text or bytes to a file, as `open_atomically` does."""
  with open_atomically(path, 'wb' if isinstance(data, bytes) else 'w') as file:
    file.write(data)


def read_regular(path: str | os.PathLike) -> bytes:
  """The bytes of a local or remote file.

  Raises:
    OSError: there is no such file, or it is a pipe, a socket or a device.
      Those are not opened, because opening or reading one may never return.
  """
  if '://' in str(path):
    return epath.Path(path).read_bytes()
  kind = special_kind(os.stat(path).st_mode)
  if kind:
    raise OSError(f'{kind}, not a regular file')
  with open(path, 'rb') as file:
    return file.read()


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
