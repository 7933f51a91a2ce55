"""Exact evaluation: every example of every set counts once."""

import collections
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from vit_jax.data import loader
from vit_jax.data.sources.source import Source
from vit_jax.parallel.mesh import (
  batch_shards,
  batch_slice,
  put_batch,
  replicated,
)
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment, losses, metrics
from vit_jax.training.progress import progress_bar

LOSSES = {'softmax': losses.softmax_xent, 'sigmoid': losses.sigmoid_xent}
# Batches on their way to or on the devices, as in training: one is computed
# while the next one is copied, and the memory does not grow with the set.
_MOST_IN_FLIGHT = 2


def make_eval_step(
  model: Any, *, num_classes: int, preprocessing: Preprocessing, loss: str
) -> Callable:
  """Builds eval_step(variables, batch) -> sums over the real examples.

  Args:
    model: Linen module. Its field `dtype` is the type of its input, float32
      for a module without one.
    num_classes: of the head.
    preprocessing: images of another size are resized to its size, bilinearly,
      on the device; then they are normalized.
    loss: key of LOSSES.

  Returns:
    A pure function. Its batch has 'image' (B, H, W, 3) of pixel values in
    [0, 255], 'label' (B,) or (B, C), and 'mask' (B,), 0 for padding. Its result
    is that of `metrics.batch_metrics`.
  """
  dtype = jnp.dtype(getattr(model, 'dtype', jnp.float32))

  def eval_step(variables, batch):
    images = batch['image']
    if images.shape[1:3] != preprocessing.size:
      images = augment.resize(images, preprocessing.size)
    images = augment.normalize(images, preprocessing.normalize, dtype)
    logits, _ = model.apply(variables, images, train=False)
    labels = batch['label']
    targets = (
      labels if labels.ndim > 1 else augment.one_hot(labels, num_classes)
    )
    per_example = LOSSES[loss](logits, targets)
    return metrics.batch_metrics(logits, labels, per_example, batch['mask'])

  return eval_step


class Evaluator:
  """Evaluates variables on all sets; the evaluation step is compiled once.

  Args:
    model: Linen module.
    mesh: devices; variables and batches are split over it.
    sets: name -> source.
    num_classes: of the head.
    preprocessing: how the model is fed.
    host_size: (height, width) at which images leave the host, if the device
      resizes them; None is the size of `preprocessing`.
    loss: key of LOSSES.
    batch_size: global; rounded down to a multiple of the devices that share a
      batch, so that all get equally many examples.
    jpeg_dct: see `decode.decode`.
    threads: threads of each process that read and decode.
    max_bad_fraction: of the images of a set that cannot be read; they are left
      out and named in the log.
  """

  def __init__(
    self,
    model: Any,
    mesh: jax.sharding.Mesh,
    sets: Mapping[str, Source],
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    host_size: tuple[int, int] | None = None,
    loss: str = 'softmax',
    batch_size: int = 32,
    jpeg_dct: str = 'accurate',
    threads: int = 4,
    max_bad_fraction: float = 0.01,
  ):
    self._mesh, self._sets = mesh, sets
    self._host_preprocessing = dataclasses.replace(
      preprocessing, size=host_size or preprocessing.size
    )
    shards = batch_shards(mesh)
    self._batch_size = max(1, batch_size // shards) * shards
    self._jpeg_dct = jpeg_dct
    self._threads, self._max_bad_fraction = threads, max_bad_fraction
    self._step = jax.jit(
      make_eval_step(
        model,
        num_classes=num_classes,
        preprocessing=preprocessing,
        loss=loss,
      ),
      out_shardings=replicated(mesh),
    )

  def __call__(self, variables: Any) -> dict[str, dict[str, float]]:
    """{set: {'top1', 'top5', 'loss', 'examples'}}; means over the examples.

    Raises:
      TooManyBadImages: more than `max_bad_fraction` of a set's images cannot
        be read.
    """
    return {
      name: self._evaluate(name, source, variables)
      for name, source in self._sets.items()
    }

  def _evaluate(self, name: str, source: Source, variables) -> dict[str, float]:
    sums, in_flight = [], collections.deque()
    with self._batches(source) as batches:
      for batch in progress_bar(batches, len(batches), f'evaluating {name}'):
        batch = {key: batch[key] for key in ('image', 'label', 'mask')}
        in_flight.append(self._step(variables, put_batch(batch, self._mesh)))
        if len(in_flight) > _MOST_IN_FLIGHT:
          sums.append(jax.device_get(in_flight.popleft()))
    sums += jax.device_get(list(in_flight))
    merged = metrics.merge(*sums)
    corrupt = len(source) - round(float(merged['images']))
    if corrupt:  # the loader has named each of them in the log
      logging.warning(
        'eval set %s: %d of %d images are corrupt and were left out',
        name,
        corrupt,
        len(source),
      )
    result = metrics.summarize(merged)
    unlabeled = len(source) - corrupt - result['examples']
    if source.multi_label and unlabeled:
      logging.info(
        'eval set %s: %d of %d images have no label and do not count',
        name,
        unlabeled,
        len(source),
      )
    return result

  def _batches(self, source: Source) -> loader.Batches:
    index, count = batch_slice(self._mesh)
    return loader.eval_batches(
      source,
      self._host_preprocessing,
      batch_size=self._batch_size,
      jpeg_dct=self._jpeg_dct,
      threads=self._threads,
      process_index=index,
      process_count=count,
      max_bad_fraction=self._max_bad_fraction,
    )
