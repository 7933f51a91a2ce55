"""Sub-splits in TFDS's syntax, such as 'train[:98%]+test'."""

from collections.abc import Callable

from vit_jax.data.sources.renumbered import with_classes
from vit_jax.data.sources.source import Concat, Source, Subset
from vit_jax.data.splits import parse_split, split_bounds


def open_slices(split: str, open_one: Callable[[str], Source]) -> Source:
  """Opens a split or sub-split.

  Args:
    split: a split or sub-split in TFDS's syntax.
    open_one: opens a whole split by its name.

  Raises:
    ValueError: the split cannot be read, or is empty.
  """
  opened: dict[str, Source] = {}
  slices = []
  for base, start, stop in parse_split(split):
    if base not in opened:
      opened[base] = open_one(base)
    source = opened[base]
    if start or stop:
      low, high = split_bounds(start, stop, len(source))
      if low >= high:
        raise ValueError(
          f'split {split!r}: {base}[{start}:{stop}] is empty; {base} has '
          f'{len(source)} examples'
        )
      source = Subset(source, low, high, f'{source.name}[{start}:{stop}]')
    slices.append(source)
  first = slices[0]
  if len(slices) == 1:
    return first
  slices = [
    with_classes(s, first.num_classes, first.class_names, first.name)
    for s in slices
  ]
  return Concat(slices, ' + '.join(s.name for s in slices))
