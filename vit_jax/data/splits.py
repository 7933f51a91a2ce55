"""Names and sub-splits of data sets."""

from collections.abc import Sequence
import logging
import re

log = logging.getLogger(__name__)

# The folders that are splits, in lower case, and the names of the splits.
SPLIT_FOLDERS = {
  'train': 'train',
  'training': 'train',
  'val': 'val',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}
# The names that a source may use for a split, the preferred one first: 'test',
# 'validation' and 'val' stand for one another.
SPLIT_ALIASES = {
  'train': ('train', 'training'),
  'test': ('test', 'testing', 'validation', 'val', 'valid'),
  'validation': ('validation', 'val', 'valid', 'test', 'testing'),
  'val': ('val', 'validation', 'valid', 'test', 'testing'),
}


class NoSplit(ValueError):
  """A source does not have a split, or has no examples of it."""


def unknown_split(split: str, known: Sequence[str], what: str) -> NoSplit:
  """The error for a split that a source does not have.

  Args:
    split: the requested name.
    known: names of the splits of the source.
    what: the source, for the message.
  """
  return NoSplit(
    f'{what} has no split {split!r}; it has {", ".join(known)}. To hold out '
    "some of its examples, use 'train[:90%]' and 'train[90%:]'"
  )


def pick_split(split: str, known: Sequence[str], what: str) -> str:
  """The name under which a source has a split.

  Args:
    split: the requested name; any name of SPLIT_ALIASES for a test split
      stands for the other ones too.
    known: names of the splits of the source.
    what: the source, for messages.

  Raises:
    ValueError: the source has none of the names.
  """
  if split in known:
    return split
  wanted = SPLIT_FOLDERS.get(split.lower(), split)
  by_lower_case = {name.lower(): name for name in known}
  for alias in SPLIT_ALIASES.get(wanted, (wanted,)):
    if alias in by_lower_case:
      name = by_lower_case[alias]
      log.info('%s has no split %r: using %r', what, split, name)
      return name
  raise unknown_split(split, known, what)


def parse_split(split: str) -> list[tuple[str, str, str]]:
  """'train[:98%]+test' -> [('train', '', '98%'), ('test', '', '')].

  Raises:
    ValueError: the text is not in TFDS's split syntax.
  """
  slices = []
  for text in split.split('+'):
    match = re.fullmatch(
      r'\s*([\w\-.]+)(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*', text
    )
    if not match:
      raise ValueError(
        f'split {split!r}: cannot read {text!r}; examples are '
        "'train', 'train[:98%]', 'train[-500:]', 'train[10%:20%]+test'"
      )
    slices.append((match[1], match[2] or '', match[3] or ''))
  return slices


def split_bounds(start: str, stop: str, n: int) -> tuple[int, int]:
  """Absolute [start, stop) of a slice of n examples.

  Percentages are rounded to the nearest example, as in TFDS.

  Args:
    start, stop: texts such as '10', '-500' or '98%'; '' for the beginning and
      the end of the split.
    n: number of examples of the split.
  """

  def absolute(text: str, default: int) -> int:
    if not text:
      return default
    value = round(int(text[:-1]) * n / 100) if text.endswith('%') else int(text)
    return min(max(value + n if value < 0 else value, 0), n)

  return absolute(start, 0), absolute(stop, n)
