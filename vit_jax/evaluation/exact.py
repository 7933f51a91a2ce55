"""Exact evaluation: every example of an eval set counts exactly once."""

import collections
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.data import loader
from vit_jax.data.batches import allowed_bad, too_many_bad
from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.sources.source import Source
from vit_jax.parallel.compilation import compile_together
from vit_jax.parallel.mesh import (
  batch_shards,
  batch_slice,
  put_batch,
  replicated,
)
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment, losses, metrics
from vit_jax.training.progress import progress_bar

# Number of batches that the host sends ahead of the results that it has read.
# One batch is computed while the next one is copied, as in training, and the
# memory does not grow with the number of batches.
_MOST_IN_FLIGHT = 2


def make_eval_step(
  model: nn.Module, *, num_classes: int, preprocessing: Preprocessing, loss: str
) -> Callable:
  """Builds eval_step(variables, batch) -> sums over the real examples.

  Args:
    model: Linen module. Its input has the type of its field `dtype`, or float32
      if it has no such field.
    num_classes: number of classes of the head.
    preprocessing: size and normalization of the model's input. Images of
      another size are resized bilinearly on the device.
    loss: key of `losses.LOSSES`.

  Returns:
    A pure function. Its batch has 'image' (B, H, W, 3) with pixels in [0, 255],
    'label' (B,) or (B, C), and 'mask' (B,), 0 for padding. It returns the sums
    of `metrics.batch_metrics`.
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
    per_example = losses.LOSSES[loss](logits, targets)
    return metrics.batch_metrics(logits, labels, per_example, batch['mask'])

  return eval_step


class NonFiniteWeights(ValueError):
  """Weights with NaN or infinite values, whose results mean nothing."""


@jax.jit
def _count_nonfinite(variables: Any) -> list[jax.Array]:
  return [jnp.sum(~jnp.isfinite(x)) for x in jax.tree.leaves(variables)]


def check_finite(variables: Any) -> None:
  """Raises NonFiniteWeights, which names the arrays, for NaN or infinity."""
  counts = [int(x) for x in jax.device_get(_count_nonfinite(variables))]
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(variables)
  ]
  bad = [f'{p} ({n})' for p, n in zip(paths, counts, strict=True) if n]
  if bad:
    raise NonFiniteWeights(
      f'the weights have NaN or infinite values in {len(bad)} of {len(paths)} '
      f'arrays: {", ".join(bad[:3])}{", ..." if len(bad) > 3 else ""}. Take an '
      'earlier step, or train again with a lower optim.lr or optim.clip=1.0'
    )


class Evaluator:
  """Evaluates variables on eval sets; the evaluation step is compiled once.

  Args:
    model: Linen module.
    mesh: the devices, over which variables and batches are sharded.
    sets: {name: source} of the eval sets.
    num_classes: number of classes of the head.
    preprocessing: how images are prepared for the model.
    host_size: (height, width) of the images that the host makes, if the device
      resizes them; None for the size of `preprocessing`.
    loss: key of `losses.LOSSES`.
    batch_size: number of images in a global batch. It is rounded down to a
      multiple of the devices that share a batch, so that all of them get the
      same number of images.
    decoding: how images are decoded; `preprocessing` says whether upright.
    threads: number of threads that read and decode, in each process.
    max_bad_fraction: fraction of a set's images that may be unreadable. They
      are left out and named in the log.
  """

  def __init__(
    self,
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    sets: Mapping[str, Source],
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    host_size: tuple[int, int] | None = None,
    loss: str = 'softmax',
    batch_size: int = 32,
    decoding: Decoding = DEFAULT_DECODING,
    threads: int = 4,
    max_bad_fraction: float = 0.01,
  ):
    self._mesh, self._sets = mesh, sets
    self._host_preprocessing = dataclasses.replace(
      preprocessing, size=host_size or preprocessing.size
    )
    shards = batch_shards(mesh)
    self._batch_size = max(1, batch_size // shards) * shards
    self._decoding = decoding
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
    """Evaluates all sets.

    Args:
      variables: variables of the model.

    Returns:
      {set: {'top1', 'top5', 'loss', 'examples'}}: means over the examples of
      the set, and their number.

    Raises:
      TooManyBadImages: more than `max_bad_fraction` of a set's images cannot
        be read.
      NonFiniteWeights: a variable has NaN or infinite values.
    """
    check_finite(variables)
    return {
      name: self._evaluate(name, source, variables)
      for name, source in self._sets.items()
    }

  def _evaluate(self, name: str, source: Source, variables) -> dict[str, float]:
    sums, in_flight = [], collections.deque()
    bad = {}
    with self._batches(source) as batches:
      for batch in progress_bar(batches, len(batches), f'evaluating {name}'):
        batch = {key: batch[key] for key in ('image', 'label', 'mask')}
        batch = put_batch(batch, self._mesh)
        if not in_flight and not sums:
          compile_together(self._step, variables, batch)
        in_flight.append(self._step(variables, batch))
        if len(in_flight) > _MOST_IN_FLIGHT:
          sums.append(jax.device_get(in_flight.popleft()))
      bad = batches.bad
    sums += jax.device_get(list(in_flight))
    merged = metrics.merge(*sums)
    corrupt = len(source) - round(float(merged['images']))
    # All processes have this number, so all of them raise or none does.
    if corrupt > allowed_bad(self._max_bad_fraction, len(source)):
      raise too_many_bad(bad, corrupt, source, self._max_bad_fraction)
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
      decoding=self._decoding,
      threads=self._threads,
      process_index=index,
      process_count=count,
      max_bad_fraction=1.0,  # `_evaluate` counts those of all processes
    )
