"""Names of files and classes, the same on every file system."""

from collections.abc import Iterable
import os
import unicodedata


def printable(name: str) -> str:
  r"""A file name as text that can be printed and stored.

  Python stands bytes that are not UTF-8 as lone surrogates, which no encoder
  takes. They become escapes: the byte 0xE9 becomes the four characters `\xe9`.
  """
  if name.isascii():
    return name
  return os.fsencode(name).decode('utf-8', 'backslashreplace')


def normalized(name: str) -> str:
  """A name in Unicode's composed form (NFC).

  The same text may be written in two forms that look alike: macOS stores 'é' as
  two characters (NFD), other systems as one. Names are compared in one form.
  """
  return name if name.isascii() else unicodedata.normalize('NFC', name)


def is_hidden(name: str) -> bool:
  """Whether a file or folder is hidden, or a folder that archivers add."""
  return name.startswith('.') or name in ('__MACOSX', '@eaDir')


def look_alikes(names: Iterable[str]) -> str:
  """'"Cat" and "cat"': the first names that differ only in case or blanks.

  Characters that are not visible, such as U+200B, count as nothing.
  """
  seen: dict[str, str] = {}
  for name in sorted(names):
    visible = name
    if not name.isascii():
      visible = ''.join(x for x in name if unicodedata.category(x) != 'Cf')
    other = seen.setdefault(' '.join(visible.casefold().split()), name)
    if other != name:
      names_shown = [
        x if x.isprintable() else repr(x)[1:-1] for x in (other, name)
      ]
      return '"{}" and "{}"'.format(*names_shown)
  return ''
