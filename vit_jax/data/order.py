"""The order in which training visits the examples of a source."""

from typing import Any

import grain

from vit_jax.data.sources.source import Source


def sequence_position(
  position: Any, repeats: int, batch_size: int, groups: int
) -> Any:
  """The number in the shuffled sequence of the image at a batch position.

  Repeated augmentation (arXiv:1901.09335) takes each image `repeats` times in a
  row. The global batch consists of `groups` contiguous groups, and consecutive
  entries of the repeated sequence go to consecutive groups, as DeiT's sampler
  deals them out to its processes. With at least `repeats` groups, no group has
  an image twice, which matters if batch normalization works on groups. With one
  group, repeats stay side by side.

  Args:
    position: position in the sequence of all global batches, from 0; an int or
      an int array.
    repeats: how often each image occurs.
    batch_size: number of examples in a global batch.
    groups: number of groups; a divisor of `batch_size`.

  Returns:
    An int, or an int array of the shape of `position`.
  """
  step, inside = position // batch_size, position % batch_size
  group_size = batch_size // groups
  dealt = (inside % group_size) * groups + inside // group_size
  return (step * batch_size + dealt) // repeats


class Repeat(grain.MapDataset):
  """Repeated augmentation, in the order of `sequence_position`.

  It comes before the random transforms, which draw new numbers for each repeat.
  """

  _MUTATES_ELEMENT_SPEC = False

  def __init__(
    self,
    parent: grain.MapDataset,
    repeats: int,
    batch_size: int,
    groups: int,
  ):
    super().__init__(parent)
    self._order = repeats, batch_size, groups

  def __len__(self):
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return self._parent[sequence_position(index, *self._order)]


def labeled_length(source: Source) -> int:
  """Number of examples in all splits of a source but the last one.

  Raises:
    ValueError: the source has a single split.
  """
  if len(source.lengths) < 2:
    raise ValueError(
      f'data.pseudo_ratio needs pseudo-labeled images besides {source.name}: '
      "give their directory as data.pseudo_dir, or set data.split='train+"
      "pseudo' if both are packed in one directory"
    )
  return len(source) - source.lengths[-1]


def interleaved(position: Any, ratio: int) -> tuple[Any, Any]:
  """Finds an element of the mixture of two sequences.

  Each element of the first sequence is followed by `ratio` elements of the
  second, so that every batch, and the share of every device, has this ratio.

  Args:
    position: position in the mixture, from 0; an int or an array of ints.
    ratio: number of elements of the second sequence for each of the first.

  Returns:
    Whether the element is one of the second sequence, and its position in its
    sequence.
  """
  block, inside = position // (1 + ratio), position % (1 + ratio)
  second = inside > 0
  return second, block + second * (block * (ratio - 1) + inside - 1)


class Interleave(grain.MapDataset):
  """Two endless data sets, mixed as `interleaved` says."""

  _MUTATES_ELEMENT_SPEC = False

  def __init__(
    self, first: grain.MapDataset, second: grain.MapDataset, ratio: int
  ):
    super().__init__((first, second))
    self._ratio = ratio

  def __len__(self):
    return len(self._parents[0])  # the data sets and their mixture are endless

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    second, position = interleaved(index, self._ratio)
    return self._parents[int(second)][position]


def shuffled(source: Source, seed: int, ratio: int) -> grain.MapDataset:
  """The endless sequence of the numbers of a source's examples."""
  order = lambda start, stop: (
    grain.MapDataset.range(start, stop).seed(seed).shuffle().repeat()
  )
  if not ratio:
    return order(0, len(source))
  first = labeled_length(source)
  return Interleave(order(0, first), order(first, len(source)), ratio)
