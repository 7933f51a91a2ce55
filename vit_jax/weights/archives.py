"""Members of zip archives, which cannot take more memory than they may.

A short archive can claim members of any size: compressed ones, several that
share their bytes, or ones whose size is wrong.
"""

import io
import struct
from typing import IO
import zipfile

from vit_jax.weights.errors import WeightsError

# Weights hardly compress. Whole arrays of zeros do, such as a new head.
_MOST_BYTES_PER_BYTE = 16
_ALWAYS_ALLOWED = 2**26  # bytes
# The end of an archive with its comment, and the records of a large one.
_LONGEST_END = 2**16 + 22 + 20 + 56


def check(archive: zipfile.ZipFile, size: int) -> None:
  """Checks what an archive claims, before anything of it is read.

  Args:
    archive: open for reading.
    size: of its file, in bytes.

  Raises:
    WeightsError: its members share bytes, are compressed in a way that cannot
      be bounded, encrypted, or much larger than the file.
  """
  members = archive.infolist()
  claimed = _number_of_members(archive)
  if claimed != len(members):
    raise WeightsError(
      f'the directory of its zip archive has {len(members):,} members, and its '
      f'end says {claimed:,}'
    )
  for member in members:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise WeightsError(
        f'{member.filename[:80]} is compressed by method '
        f'{member.compress_type}; allowed: none and deflate'
      )
    if member.flag_bits & 1:
      raise WeightsError(f'{member.filename[:80]} is encrypted')
  if sum(member.compress_size for member in members) > size:
    raise WeightsError(
      'the members of its zip archive overlap: together they are larger than '
      f'the {size:,} bytes of the file'
    )
  names = [member.filename for member in members]
  if len(set(names)) < len(names):
    raise WeightsError('its zip archive has several members of one name')
  claimed = sum(member.file_size for member in members)
  if claimed > max(_ALWAYS_ALLOWED, _MOST_BYTES_PER_BYTE * size):
    raise WeightsError(
      f'its zip archive claims {claimed:,} bytes, more than '
      f'{_MOST_BYTES_PER_BYTE} times the {size:,} bytes of the file'
    )


def _number_of_members(archive: zipfile.ZipFile) -> int:
  """How many members the end of an archive says that there are.

  Python's reader takes the directory as it is, and a damaged length in it hides
  the members that follow. The layout is that of PKWARE's APPNOTE, sections
  4.3.14 to 4.3.16.
  """
  file = archive.fp
  if file is None:
    raise ValueError('the archive is closed')
  position = file.tell()
  file.seek(0, 2)
  size = file.tell()
  file.seek(max(0, size - _LONGEST_END))
  end = file.read()
  start = end.rfind(b'PK\5\6')
  (count,) = struct.unpack_from('<H', end, start + 10)
  locator = end.rfind(b'PK\6\7', 0, start)
  if count == 0xFFFF and locator >= 0:  # too many for 16 bits
    (offset,) = struct.unpack_from('<Q', end, locator + 8)
    file.seek(min(offset, size))
    record = file.read(56)
    if len(record) == 56 and record.startswith(b'PK\6\6'):
      (count,) = struct.unpack_from('<Q', record, 32)
  file.seek(position)
  return count


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """The bytes of a member, held against its checksum.

  Raises:
    zipfile.BadZipFile: it is damaged.
  """
  size = archive.getinfo(name).file_size
  with archive.open(name) as file:
    # A read without a number of bytes would unpack all that is there, even if
    # it is more than the archive says.
    return file.read(size)


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
  """A member in memory, as a file."""
  return io.BytesIO(read_member(archive, name))
