"""From a source to the batches of one process, as a function of (seed, step).

The global sequence of training examples, and the augmentation of each, depend
only on the seed and on the position in the sequence. A global batch of B
examples is cut into P slices of B / P examples, and process p of P makes slice
p. The global batches are therefore the same for every P. A run resumes at any
step by starting the sequence there, so checkpoints hold nothing about the data.

    batches = train_batches(source, transform, batch_size=1024, seed=0,
                            start_step=1000)
    for batch in prefetch(batches, put_on_device):
      ...

With `workers` > 0 images are decoded in spawned processes. Each imports the
main module again, so a script needs `if __name__ == '__main__':`.
"""

from collections.abc import Callable
import dataclasses
import multiprocessing
import os
import signal
import threading

from absl import flags
import grain
import numpy as np

from vit_jax.data import batching
from vit_jax.data.batches import Batches, TooManyBadImages, why_bad
from vit_jax.data.batching import LoadedBatches
from vit_jax.data.decode import (
  DEFAULT_DECODING,
  BadImage,
  Decoding,
  check_jpeg_dct,
  decode,
)
from vit_jax.data.late_jpeg import decode_when_cropped
from vit_jax.data.order import Repeat, shuffled
from vit_jax.data.sources.source import Source, label_array, set_label
from vit_jax.data.transforms import TrainTransform, eval_image
from vit_jax.preprocessing import Preprocessing

_MAX_NEIGHBORS = 100  # unreadable examples in a row that stop the run


def train_batches(
  source: Source,
  transform: TrainTransform,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  repeats: int = 1,
  repeat_groups: int = 1,
  ratio: int = 0,
  decoding: Decoding = DEFAULT_DECODING,
  threads: int = 4,
  workers: int = 0,
  max_bad_fraction: float = 0.01,
  token_labels: Callable | None = None,
  geometry: bool = False,
) -> Batches:
  """An endless iterator over one process' share of each global batch.

  Args:
    source: where examples come from.
    transform: augmentation of each image.
    batch_size: number of examples in a global batch.
    seed: determines the order of the examples and their augmentation.
    start_step: the step of the first batch.
    process_index: which slice of each global batch to make, from 0.
    process_count: number of slices of a global batch.
    repeats: how often each image occurs in the sequence, see `Repeat`.
    repeat_groups: number of groups of the batch over which the repeats of an
      image are spread.
    ratio: number of examples of the last split of the source that follow each
      example of the other splits, see `order.interleaved`. 0 shuffles all
      examples together.
    decoding: how images are decoded.
    threads: number of threads that decode and augment, in each process.
    workers: number of processes that decode and augment; 0 uses threads only.
    max_bad_fraction: fraction of the source's images that may be unreadable.
    token_labels: `(index, transforms.Geometry) -> dict of arrays` that are
      added to the example, for labels of patches; a single array is added as
      'token_labels'.
    geometry: adds 'box' (b, 4), float32 (top, left, height, width) of the crop
      as fractions of the image, and 'flip' (b,), bool.

  Returns:
    Iterator of dicts: 'image' (b, H, W, 3), uint8, or float32 if the transform
    does not round; 'label' int32 (b,), or multi-hot float32 (b, C) for a
    multi-label source; 'index' int64 (b,), the example's number in the source.
    b = batch_size / process_count. An image that cannot be read is replaced by
    the next one in the source, and is listed in the iterator's `bad`, {path:
    reason}. `close()` stops the threads and processes.

  Raises:
    ValueError: an argument has a value that is not allowed.
    TooManyBadImages: raised by the iterator when more than `max_bad_fraction`
      of the images cannot be read.
  """
  local_batch = _local_batch(batch_size, process_count, 'data.batch_size')
  if repeats < 1:
    raise ValueError(f'data.repeats={repeats}: must be at least 1')
  if repeat_groups < 1 or batch_size % repeat_groups:
    raise ValueError(
      f'data.repeat_groups={repeat_groups}: must divide the batch of '
      f'{batch_size}'
    )
  check_jpeg_dct(decoding.jpeg_dct)
  load = _LoadTrain(source, transform, decoding, token_labels, geometry)
  dataset = shuffled(source, seed, ratio)
  if repeats > 1:
    dataset = Repeat(dataset, repeats, batch_size, repeat_groups)
  dataset = LoadedBatches(dataset.random_map(load), local_batch, transform)
  dataset = dataset[process_index::process_count][start_step:]
  return Batches(
    _start(dataset, source, threads, workers),
    source,
    max_bad_fraction,
    decoding=decoding,
  )


def eval_batches(
  source: Source,
  preprocessing: Preprocessing,
  *,
  batch_size: int,
  decoding: Decoding = DEFAULT_DECODING,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 4,
  workers: int = 0,
  max_bad_fraction: float = 0.001,
) -> Batches:
  """One pass over a source in its order, each example exactly once.

  Every process gets the same number of batches, ceil(N / batch_size), where the
  last ones are filled up with zeros. 'mask' is 0 for this padding, and also for
  an image that cannot be read.

  Args:
    source: where examples come from.
    preprocessing: how each image is resized and cropped.
    batch_size: number of examples in a global batch; a process gets
      batch_size / process_count of them.
    decoding: how images are decoded; `preprocessing` says whether upright.
    process_index, ..., max_bad_fraction: see `train_batches`.

  Returns:
    Iterator of dicts as in `train_batches`, with 'mask' float32 (b,), 1 for an
    example and 0 for padding. Its `len()` is the number of batches, and `bad`
    lists the images that cannot be read.

  Raises:
    ValueError: an argument has a value that is not allowed.
    TooManyBadImages: raised by the iterator when more than `max_bad_fraction`
      of the images cannot be read.
  """
  local_batch = _local_batch(batch_size, process_count, 'eval.batch_size')
  check_jpeg_dct(decoding.jpeg_dct)
  steps = -(-len(source) // batch_size)
  decoding = dataclasses.replace(decoding, upright=preprocessing.upright)
  load = _LoadEval(source, preprocessing, decoding)
  dataset = grain.MapDataset.range(steps * batch_size).map(load)
  dataset = dataset.batch(local_batch, drop_remainder=True)
  dataset = dataset[process_index::process_count]
  return Batches(
    _start(dataset, source, threads, workers),
    source,
    max_bad_fraction,
    steps,
    decoding,
  )


def _local_batch(batch_size: int, processes: int, key: str) -> int:
  if batch_size < 1 or batch_size % processes:
    raise ValueError(
      f'{key}={batch_size} must be a positive multiple of the number of '
      f'processes, {processes}'
    )
  return batch_size // processes


def _start(dataset, source, threads: int, workers: int):
  """The Grain iterator. Threads and workers do not change what it yields."""
  if threads < 0 or workers < 0:
    raise ValueError(
      f'data.threads={threads}, data.workers={workers}: must not be negative'
    )
  if source.in_memory:
    # Nothing is read or decoded, so more threads would only wait for one
    # another: Python runs one at a time.
    threads = min(threads, 1)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=threads + bool(threads)
    )
  )
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain passes the flags to its workers
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=2
      ),
      worker_init_fn=_begin_worker,
    )
  return iter(dataset)


def _begin_worker(worker: int, workers: int) -> None:
  """Runs first in every worker process.

  It ends the worker when the process that started it is gone, even by SIGKILL,
  and leaves Ctrl-C, which a terminal sends to all processes, to that one.
  """
  del worker, workers
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is None:  # Grain runs the function in the process itself
    return

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _LoadTrain:
  """Reads, decodes and augments one example: (index, generator) -> dict."""

  def __init__(self, source, transform, decoding, token_labels, geometry):
    self.source, self.transform, self.decoding = source, transform, decoding
    self.token_labels, self.geometry = token_labels, geometry

  def __call__(self, requested: int, rng: np.random.Generator) -> dict:
    place = batching.place()
    index, image, geometry, label = self._read(int(requested), rng, place)
    out = {
      **({} if place is not None else {'image': image}),
      'label': _label(self.source, label),
      'index': np.int64(index),
      'requested': np.int64(requested),
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

  def _read(self, requested: int, rng: np.random.Generator, place):
    """Reads and transforms `requested`, or the next readable example.

    Args:
      requested: number of the example.
      rng: of its transform.
      place: array for the transformed image, or None.

    Returns:
      Its number, the transformed image, the geometry and the label.
    """
    attempts = min(_MAX_NEIGHBORS, len(self.source))
    decode_image = decode_when_cropped if self.source.checked else decode
    state = rng.bit_generator.state
    for offset in range(attempts):
      index = (requested + offset) % len(self.source)
      try:
        example = self.source[index]
        image = decode_image(example['image'], self.decoding)
        return index, *self.transform(image, rng, place), example['label']
      except (OSError, BadImage):
        # The next example draws the numbers that this one may have drawn.
        rng.bit_generator.state = state
    reason = (
      why_bad(self.source, requested, self.decoding) or 'it can be read now'
    )
    raise TooManyBadImages(
      f'{attempts} images in a row cannot be read, from '
      f'{self.source.describe(requested)} on ({reason}). The data seems '
      'incomplete: copy or download it again'
    )


class _LoadEval:
  """Reads one example: index -> dict.

  The mask is 0 for an index past the end of the source, and for an image that
  cannot be read.
  """

  def __init__(self, source, preprocessing, decoding):
    self.source, self.preprocessing = source, preprocessing
    self.decoding = decoding

  def __call__(self, index: int) -> dict:
    index = int(index)
    decoded = label = None
    if index < len(self.source):
      try:
        example = self.source[index]
        decoded = decode(example['image'], self.decoding)
        label = example['label']
      except (OSError, BadImage):
        pass  # `Batches` counts it, because its mask is 0
    if decoded is None:
      dtype = np.float32 if self.preprocessing.rounding == 'none' else np.uint8
      image = np.zeros((*self.preprocessing.size, 3), dtype)
    else:
      image = eval_image(decoded, self.preprocessing)
    return {
      'image': image,
      'label': _label(self.source, label),
      'mask': np.float32(decoded is not None),
      'index': np.int64(index),
    }


def _label(source, label):
  """The label as int32, or as multi-hot float32 (C,); zeros for None."""
  array = label_array(source, 1)
  if label is not None:
    set_label(array, 0, label)
  return array[0]
