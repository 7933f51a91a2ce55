"""Names and sub-splits of data sets."""

from collections.abc import Sequence
import re

from vit_jax.data.sources.source import log

# What a folder or file may call the split that is asked for, best first.
SPLIT_ALIASES = {
  'train': ('train',),
  'test': ('test', 'validation', 'val'),
  'validation': ('validation', 'val', 'test'),
  'val': ('val', 'validation', 'test'),
}


def _unknown_split(split: str, there, what: str) -> ValueError:
  return ValueError(
    f'{what} has no split {split!r}; it has {", ".join(there)}. A part of '
    "one can be held out: 'train[:90%]' and 'train[90%:]'"
  )


def _pick_split(split: str, there: Sequence[str], what: str) -> str:
  """The split to read: itself, or what this source calls its test split."""
  for name in SPLIT_ALIASES.get(split, (split,)):
    if name in there:
      if name != split:
        log.info('%s has no split %r: using %r', what, split, name)
      return name
  raise _unknown_split(split, there, what)


def parse_split(split: str) -> list[tuple[str, str, str]]:
  """'train[:98%]+test' -> [('train', '', '98%'), ('test', '', '')].

  Raises:
    ValueError: the text is not in TFDS's split syntax.
  """
  parts = []
  for part in split.split('+'):
    match = re.fullmatch(
      r'\s*([\w\-.]+)(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*', part
    )
    if not match:
      raise ValueError(
        f'split {split!r}: cannot read {part!r}; examples are '
        "'train', 'train[:98%]', 'train[-500:]', 'train[10%:20%]+test'"
      )
    parts.append((match[1], match[2] or '', match[3] or ''))
  return parts


def split_bounds(start: str, stop: str, n: int) -> tuple[int, int]:
  """Absolute [start, stop) of a slice of n examples; percentages round to the
  nearest, as in TFDS."""

  def absolute(text: str, default: int) -> int:
    if not text:
      return default
    value = round(int(text[:-1]) * n / 100) if text.endswith('%') else int(text)
    return min(max(value + n if value < 0 else value, 0), n)

  return absolute(start, 0), absolute(stop, n)
