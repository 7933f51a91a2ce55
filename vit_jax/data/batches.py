"""Batches of examples, with a count of the images that cannot be read."""

from collections.abc import Iterator, Mapping
import logging

import numpy as np

from vit_jax.data.decode import DEFAULT_DECODING, Decoding, decode
from vit_jax.data.sources.source import Source

log = logging.getLogger(__name__)


class TooManyBadImages(ValueError):
  """More images than allowed cannot be read; the message lists them."""


def why_bad(
  source: Source, i: int, decoding: Decoding = DEFAULT_DECODING
) -> str:
  """Why example i cannot be read; '' if it can."""
  try:
    decode(source[i]['image'], decoding)
  except Exception as e:  # every reason is reported
    return f'{type(e).__name__}: {e}'
  return ''


def allowed_bad(fraction: float, examples: int) -> float:
  """How many unreadable images are tolerated.

  One of them always is, unless the fraction is 0: in a set of 13 images it is
  more than any sensible fraction.
  """
  return max(1.0, fraction * examples) if fraction > 0 else 0.0


def too_many_bad(
  bad: Mapping[str, str], count: int, source: Source, fraction: float
) -> TooManyBadImages:
  """The error that names unreadable images.

  Args:
    bad: {path: reason} of those that are known here.
    count: of all of them.
    source: that has them.
    fraction: `data.max_bad_fraction`.
  """
  shown = [f'  {path}: {why}' for path, why in list(bad.items())[:20]]
  more = count - len(shown)
  return TooManyBadImages(
    f'{count} of {len(source)} images of {source.name} cannot be read, more '
    f'than data.max_bad_fraction={fraction} allows. Remove or repair them, or '
    'raise that fraction:\n'
    + '\n'.join(shown)
    + (f'\n  and {more} more' if more else '')
  )


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
    decoding: Decoding = DEFAULT_DECODING,
  ):
    self.bad: dict[str, str] = {}
    self._iterator, self._source = iterator, source
    self._allowed = allowed_bad(max_bad_fraction, len(source))
    self._fraction = max_bad_fraction
    self._length, self._decoding = length, decoding
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
    reason = why_bad(self._source, index, self._decoding)
    self.bad[path] = reason or 'it can be read now'
    log.warning(
      'skipping a bad image: %s (%s); %d so far',
      path,
      self.bad[path],
      len(self.bad),
    )
    if len(self._seen) > self._allowed:
      raise too_many_bad(
        self.bad, len(self._seen), self._source, self._fraction
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
