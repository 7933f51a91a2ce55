"""Batches of examples, with a count of the images that cannot be read."""

from collections.abc import Iterator
import logging

import numpy as np

from vit_jax.data.decode import decode
from vit_jax.data.sources.source import Source

log = logging.getLogger(__name__)


class TooManyBadImages(ValueError):
  """More images than allowed cannot be read; the message lists them."""


def why_bad(source: Source, i: int) -> str:
  """Why example i cannot be read."""
  try:
    decode(source[i]['image'])
  except Exception as e:  # every reason is reported
    return f'{type(e).__name__}: {e}'
  return 'it can be read now'


class Batches:
  """Iterator over batches that counts the images that cannot be read.

  Args:
    iterator: yields dicts of arrays, made by `loader`.
    source: the source of the examples.
    max_bad_fraction: fraction of the source's images that may be unreadable.
    length: number of batches; None if they do not end.

  Attributes:
    bad: {path: reason} of the unreadable images so far, in order.

  Raises:
    TooManyBadImages: raised by `next` when there are more unreadable images
      than `max_bad_fraction` allows.
  """

  def __init__(
    self,
    iterator: Iterator,
    source: Source,
    max_bad_fraction: float,
    length: int | None = None,
  ):
    self.bad: dict[str, str] = {}
    self._iterator, self._source = iterator, source
    self._allowed = max_bad_fraction * len(source)
    self._fraction = max_bad_fraction
    self._length = length
    self._seen: set[int] = set()

  def __iter__(self):
    return self

  def __len__(self):
    if self._length is None:
      raise TypeError('training batches have no end')
    return self._length

  def __next__(self) -> dict[str, np.ndarray]:
    # Worker processes reuse the shared memory of their arrays, so copy them.
    batch = {
      k: v if type(v) is np.ndarray else np.array(v)
      for k, v in next(self._iterator).items()
    }
    for index in self._unreadable(batch):
      self._note(index)
    batch.pop('requested', None)
    return batch

  def _unreadable(self, batch) -> Iterator[int]:
    """The numbers of the examples that a batch lacks as unreadable."""
    n = len(self._source)
    if 'requested' in batch:  # training: the next readable example was taken
      replaced = np.flatnonzero(batch['requested'] != batch['index'])
      for i in replaced:
        first = int(batch['requested'][i])
        for k in range((int(batch['index'][i]) - first) % n):
          yield (first + k) % n
    else:  # evaluation: masked, as is the padding, whose index is past the end
      masked = batch['index'][batch['mask'] == 0]
      yield from (int(i) for i in masked if i < n)

  def _note(self, index: int):
    """Logs and counts a bad image; raises when there are too many."""
    if index in self._seen:
      return
    self._seen.add(index)
    path = self._source.describe(index)
    self.bad[path] = why_bad(self._source, index)
    log.warning(
      'skipping a bad image: %s (%s); %d so far',
      path,
      self.bad[path],
      len(self.bad),
    )
    if len(self._seen) > self._allowed:
      shown = [f'  {p}: {why}' for p, why in list(self.bad.items())[:20]]
      more = len(self.bad) - len(shown)
      raise TooManyBadImages(
        f'{len(self.bad)} of {len(self._source)} images of '
        f'{self._source.name} cannot be read, more than '
        f'data.max_bad_fraction={self._fraction} allows. Remove or repair '
        'them (a recipe can also raise that fraction):\n'
        + '\n'.join(shown)
        + (f'\n  and {more} more' if more else '')
      )

  def close(self) -> None:
    """Stops the reading threads and processes."""
    close = getattr(self._iterator, 'close', None)
    if close:
      close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()
