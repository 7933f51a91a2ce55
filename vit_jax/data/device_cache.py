"""Holds a small data set on the device, so that the host sends only indices.

CIFAR-10, for example, takes 146 MiB as uint8. If the whole data set is on the
device, the compiled step gathers a batch by the numbers of its examples, and
crops, flips and resizes the images itself. The order of the examples is a
function of (seed, step), as in `loader`, but another one.

    cache = DeviceCache(source, transform, batch_size=512, seed=0)
    step(state, cache.arrays, cache.indices(i), key)   # calls cached_batch

`cache.arrays` is an argument of the step, because a function that closes over
the arrays would be compiled with the data inside the program.
"""

from collections.abc import Callable
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import device_crops
from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.order import (
  interleaved,
  labeled_length,
  sequence_position,
)
from vit_jax.data.sources.source import Source
from vit_jax.data.transforms import TrainTransform

MODES = ('auto', 'on', 'off')
MAX_BYTES = 1 << 30  # with 'auto', larger data sets stay on the host
# Added before pixels are truncated, so that rounding errors of the matrix
# products cannot turn an exact integer into the integer below it.
_TRUNCATION_MARGIN = 1e-3


def why_not_cached(source: Source, transform: TrainTransform) -> str:
  """The reason why a source cannot be held on the device; '' if it can."""
  if transform.randaugment:
    return 'data.randaugment runs on the host'
  if transform.color_jitter:
    return 'data.color_jitter runs on the host'
  if source.image_shape is None:
    return f'the images of {source.name} may differ in size'
  same_size = source.image_shape == transform.size
  resizes = not same_size or transform.crop not in (
    'pad_crop',
    'resize',
    'none',
  )
  if transform.interpolation != 'bilinear' and resizes:
    return f'data.interpolation={transform.interpolation!r} runs on the host'
  if transform.crop == 'none' and not same_size:
    return (
      f"data.crop='none' with images of {source.image_shape}, but the model "
      f'takes {transform.size}'
    )
  return ''


def wants_cache(source: Source, transform: TrainTransform, mode: str) -> bool:
  """Whether a source will be held on the device.

  Args:
    source: the training data.
    transform: the augmentation of its images.
    mode: 'on', 'off', or 'auto', which is 'on' if the source can be held on the
      device and takes at most 1 GiB.

  Raises:
    ValueError: `mode` is 'on' and the source cannot be held on the device, or
      `mode` is not one of MODES.
  """
  if mode not in MODES:
    raise ValueError(
      f'data.device_cache={mode!r}: must be one of {", ".join(MODES)}'
    )
  if mode == 'off':
    return False
  reason = why_not_cached(source, transform)
  if mode == 'on':
    if reason:
      raise ValueError(
        f"data.device_cache='on' is not possible: {reason}. "
        "Use 'auto' or 'off'."
      )
    return True
  if reason or source.image_shape is None:
    return False
  return len(source) * math.prod(source.image_shape) * 3 <= MAX_BYTES


class DeviceCache:
  """A data set on the device and the order in which it is visited.

  Attributes:
    arrays: {'image': uint8 (N, H, W, 3), 'label': int32 (N,) or multi-hot
      float32 (N, C)}, an argument of the compiled step.
  """

  def __init__(
    self,
    source: Source,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    repeats: int = 1,
    repeat_groups: int = 1,
    ratio: int = 0,
    decoding: Decoding = DEFAULT_DECODING,
    put: Callable = jnp.asarray,
  ):
    """Reads the whole source.

    Args:
      source: images of one size.
      transform: the transform that `cached_batch` will be given.
      batch_size: number of examples in a global batch.
      seed: determines the order of the examples.
      repeats, repeat_groups: see `order.sequence_position`.
      ratio: see `loader.train_batches`.
      put: copies a numpy array to the device, or to all devices.

    Raises:
      ValueError: this data cannot be held on the device.
    """
    reason = why_not_cached(source, transform)
    if reason:
      raise ValueError(f'this data cannot be held on the device: {reason}')
    images, labels = source.arrays(decoding)
    self.arrays = {'image': put(images), 'label': put(labels)}
    self._batch, self._ratio = batch_size, ratio
    # The examples [start, stop) of each sequence that batches are made of.
    middle = [labeled_length(source)] if ratio else []
    self._ranges = list(itertools.pairwise([0, *middle, len(source)]))
    self._repeats = repeats, batch_size, repeat_groups
    self._seed = seed
    self._orders: dict[tuple[int, int], np.ndarray] = {}

  def indices(self, step: int) -> np.ndarray:
    """The numbers of the examples in a step's global batch: int32 (batch,)."""
    position = step * self._batch + np.arange(self._batch)
    position = sequence_position(position, *self._repeats)
    sequence = np.zeros_like(position)
    if self._ratio:
      sequence, position = interleaved(position, self._ratio)
    out = np.empty(self._batch, np.int32)
    for k, (start, stop) in enumerate(self._ranges):
      epochs, ranks = np.divmod(position, stop - start)
      for epoch in np.unique(epochs[sequence == k]):
        chosen = (sequence == k) & (epochs == epoch)
        out[chosen] = start + self._order(k, int(epoch))[ranks[chosen]]
    return out

  def _order(self, sequence: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, a pure function of (seed, epoch)."""
    if (sequence, epoch) not in self._orders:
      for k, old in list(self._orders):
        if k == sequence and old < epoch - 1:
          del self._orders[k, old]
      start, stop = self._ranges[sequence]
      # The upper half of the second number differs for the two sequences.
      key = [self._seed, epoch + (sequence << 32)]
      self._orders[sequence, epoch] = np.random.Generator(
        np.random.Philox(key=key)
      ).permutation(stop - start)
    return self._orders[sequence, epoch]


def cached_batch(
  arrays: dict,
  indices: jax.Array,
  key: jax.Array,
  transform: TrainTransform,
) -> dict[str, jax.Array]:
  """Gathers, crops, flips and resizes a batch; to be called inside jit.

  Args:
    arrays: `DeviceCache.arrays`.
    indices: int32 (B,).
    key: the random key of this step's augmentation.
    transform: the crop, flip and size of the images (static).

  Returns:
    'image' float32 (B, height, width, 3) in [0, 255], 'label' as cached and
    'index' int32 (B,). With the rounding 'nearest' the pixels stay unrounded:
    the host rounds them only to send them as integers.
  """
  images = jnp.take(arrays['image'], indices, axis=0)
  _, height, width, _ = images.shape
  keys = jax.random.split(key, indices.shape[0])
  rows, columns = jax.vmap(
    lambda k: device_crops.crop_matrices(k, height, width, transform)
  )(keys)
  highest = jax.lax.Precision.HIGHEST
  images = jnp.einsum(
    'bih,bhwc->biwc', rows, images.astype(jnp.float32), precision=highest
  )
  images = jnp.einsum('bjw,biwc->bijc', columns, images, precision=highest)
  if transform.rounding == 'truncate':
    images = jnp.floor(images + _TRUNCATION_MARGIN)
  return {
    'image': images,
    'label': jnp.take(arrays['label'], indices, axis=0),
    'index': indices,
  }
