"""From a source to this process' batches, as a function of (seed, step).

The global sequence of training examples and the augmentation of each depend on
the seed and the position alone. Process p of P takes every P-th run of B / P
examples, so its batches are slices of the same global batches whatever P is,
and a run resumes at a step by starting there: nothing about data needs saving.

    batches = train_batches(source, config.data, seed=0, start_step=1000)
    for batch in prefetch(batches, put_on_device, config.data.prefetch):
      ...

With `data.workers` > 0 the decoding happens in spawned processes, which import
the main module again: a script needs `if __name__ == '__main__':`.
"""

from collections.abc import Callable, Iterator
import logging
from typing import Any

from absl import flags
import grain
import numpy as np

from vit_jax.data import transforms
from vit_jax.data.sources.source import Source, label_array, set_label

log = logging.getLogger(__name__)

_MAX_NEIGHBOURS = 100  # corrupt examples in a row before giving up


class TooManyBadImages(ValueError):
  """More images than tolerated could not be read; the message lists them."""


def train_batches(
  source: Source,
  cfg: Any,
  *,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  token_labels: Callable | None = None,
  geometry: bool = False,
) -> 'Batches':
  """An endless iterator over this process' share of each global batch.

  Args:
    source: where examples come from.
    cfg: section `data` of a config.
    seed: the run's seed.
    start_step: the first batch is the one of this step.
    process_index: which slice of each global batch is ours.
    process_count: into how many slices a global batch is cut.
    token_labels: `(index, transforms.Geometry) -> dict of arrays`, added to the
      example, for labels that live on the image's grid; a single array is
      added as 'token_labels'.
    geometry: adds 'box' (b, 4), float32 (top, left, height, width) of the crop
      as fractions of the image, and 'flip' (b,), bool.

  Returns:
    Iterator of dicts: 'image' uint8 (b, H, W, 3); 'label' int32 (b,), or
    multi-hot float32 (b, C) for a multi-label source; 'index' int64 (b,), the
    example's number in the source. b = batch_size / process_count. It has
    `close()`, and `bad`, {path: reason} of the images it could not read. Such
    an image is replaced by the next one in the source.

  Raises:
    ValueError: a key of `cfg` has a value that is not allowed.
    TooManyBadImages: (from the iterator) past `cfg.max_bad_fraction`.
  """
  batch = _local_batch(cfg.batch_size, process_count, 'data.batch_size')
  if cfg.repeats < 1:
    raise ValueError(f'data.repeats={cfg.repeats}: must be at least 1')
  load = _LoadTrain(
    source, transforms.TrainTransform(cfg), token_labels, geometry
  )
  dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  if cfg.repeats > 1:
    dataset = _RepeatEach(dataset, cfg.repeats)
  dataset = dataset.random_map(load).batch(batch, drop_remainder=True)
  dataset = dataset[process_index::process_count][start_step:]
  return Batches(
    _start(dataset, source, cfg.threads, cfg.workers),
    source,
    cfg.max_bad_fraction,
  )


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  image_size: int | tuple[int, int],
  crop: str | float = 'squash',
  interpolation: str = 'bilinear',
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 4,
  workers: int = 0,
  max_bad_fraction: float = 0.001,
) -> 'Batches':
  """One pass over a source in its order, each example exactly once.

  Every process gets the same number of batches, ceil(N / batch_size): the last
  ones are filled up with zeros, which 'mask' marks. A corrupt image is masked
  as well, counted in `bad`, and past `max_bad_fraction` stops the pass.

  Args:
    batch_size: of the global batch; a process gets batch_size / process_count.
    image_size, crop, interpolation: see `transforms.eval_image`.

  Returns:
    Iterator of dicts as of `train_batches`, and 'mask' float32 (b,), 1 for an
    example and 0 for filling. Its `len()` is the number of batches.
  """
  batch = _local_batch(batch_size, process_count, 'eval.batch_size')
  transforms.check_eval(crop, interpolation)
  steps = -(-len(source) // batch_size)
  load = _LoadEval(
    source, transforms.image_size(image_size), crop, interpolation
  )
  dataset = grain.MapDataset.range(steps * batch_size).map(load)
  dataset = dataset.batch(batch, drop_remainder=True)
  dataset = dataset[process_index::process_count]
  return Batches(
    _start(dataset, source, threads, workers), source, max_bad_fraction, steps
  )


def _local_batch(batch_size: int, processes: int, key: str) -> int:
  if batch_size < 1 or batch_size % processes:
    raise ValueError(
      f'{key}={batch_size} must be a positive multiple of the number of '
      f'processes, {processes}'
    )
  return batch_size // processes


def _start(dataset, source, threads: int, workers: int):
  """The Grain iterator; neither threads nor workers change what it yields."""
  if threads < 0 or workers < 0:
    raise ValueError(
      f'data.threads={threads}, data.workers={workers}: must not be negative'
    )
  if source.in_memory:  # Python-bound: more threads only wait for each other
    threads = min(threads, 1)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=threads + bool(threads)
    )
  )
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain's processes are told the flags
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=2
      )
    )
  return iter(dataset)


class _RepeatEach(grain.MapDataset):
  """Every element `times` times in a row (repeated augmentation,
  arXiv:1901.09335), before the random transforms see their position."""

  _MUTATES_ELEMENT_SPEC = False

  def __init__(self, parent, times: int):
    super().__init__(parent)
    self._times = times

  def __len__(self):
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return self._parent[index // self._times]


class _LoadTrain:
  """(index, generator) -> example: reads, decodes, augments."""

  def __init__(self, source, transform, token_labels, geometry):
    self.source, self.transform = source, transform
    self.token_labels, self.geometry = token_labels, geometry

  def __call__(self, asked: int, rng: np.random.Generator) -> dict:
    index = int(asked)
    for _ in range(min(_MAX_NEIGHBOURS, len(self.source))):
      try:
        example = self.source[index]
        image = transforms.decode(example['image'])
        break
      except (OSError, transforms.BadImage):
        index = (index + 1) % len(self.source)
    else:
      raise TooManyBadImages(
        f'{min(_MAX_NEIGHBOURS, len(self.source))} images in a row cannot be '
        f'read, from {self.source.describe(int(asked))} on '
        f'({why_bad(self.source, int(asked))}). Is the data complete?'
      )
    image, geometry = self.transform(image, rng)
    out = {
      'image': image,
      'label': _label(self.source, example['label']),
      'index': np.int64(index),
      'asked': np.int64(asked),
    }
    if self.token_labels is not None:
      labels = self.token_labels(index, geometry)
      out.update(
        labels if isinstance(labels, dict) else {'token_labels': labels}
      )
    if self.geometry:
      out['box'] = np.array(geometry.box, np.float32)
      out['flip'] = np.bool_(geometry.flip)
    return out


class _LoadEval:
  """index -> example, masked where past the end or not readable."""

  def __init__(self, source, size, crop, interpolation):
    self.source, self.size = source, size
    self.crop, self.interpolation = crop, interpolation

  def __call__(self, index: int) -> dict:
    index = int(index)
    image = np.zeros((*self.size, 3), np.uint8)
    label = label_array(self.source, 1)[0]
    mask = False
    if index < len(self.source):
      try:
        example = self.source[index]
        decoded = transforms.decode(example['image'])
        mask = True
      except (OSError, transforms.BadImage):
        pass
    if mask:
      image = transforms.eval_image(
        decoded, self.size, self.crop, self.interpolation
      )
      label = _label(self.source, example['label'])
    return {
      'image': image,
      'label': label,
      'mask': np.float32(mask),
      'index': np.int64(index),
    }


def _label(source, label):
  """int32, or a multi-hot float32 (C,)."""
  array = label_array(source, 1)
  set_label(array, 0, label)
  return array[0]


def why_bad(source: Source, i: int) -> str:
  """Why example i cannot be read."""
  try:
    data = source[i]['image']
    transforms.decode(data)
  except Exception as e:  # whatever it is, it goes into a message
    return f'{type(e).__name__}: {e}'
  return 'it can be read now'


class Batches:
  """Iterator over batches that keeps the account of unreadable images.

  Attributes:
    bad: {path: reason}, in the order in which they were met.
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
    # Out of the shared memory of worker processes, if that is where it is.
    batch = {
      k: v if type(v) is np.ndarray else np.array(v)
      for k, v in next(self._iterator).items()
    }
    n = len(self._source)
    if 'asked' in batch:
      asked = batch.pop('asked')
      for i in np.flatnonzero(asked != batch['index']):
        first = int(asked[i])
        for k in range((int(batch['index'][i]) - first) % n):
          self._note((first + k) % n)
    else:
      for i in np.flatnonzero(batch['mask'] == 0):
        if batch['index'][i] < n:
          self._note(int(batch['index'][i]))
    return batch

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
        'them, or raise that fraction:\n'
        + '\n'.join(shown)
        + (f'\n  and {more} more' if more else '')
      )

  def close(self):
    """Stops the reading threads and processes."""
    close = getattr(self._iterator, 'close', None)
    if close:
      close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()
