"""The fast path of small data: the whole set on the device.

A data set such as CIFAR-10 is 146 MiB of uint8. Held on the device, a batch is
a gather, and crop, flip and resize run inside the jitted step: only the numbers
of the examples travel. The order is a function of (seed, step) as in
pipeline.py, though not the same one.

    cache = DeviceCache(source, config.data, seed)
    step(state, cache.arrays, cache.indices(i), key)   # calls cached_batch

Pass `cache.arrays` as an argument: closed over, it would be compiled in.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import transforms
from vit_jax.data.sources.source import Source

MAX_BYTES = 1 << 30  # what 'auto' puts on a device


def why_not_cached(source: Source, cfg: Any) -> str:
  """'' if the recipe's data can live on the device, else the reason."""
  size = transforms.target_size(cfg)
  if cfg.randaugment:
    return 'data.randaugment runs on the host'
  if cfg.color_jitter:
    return 'data.color_jitter runs on the host'
  if cfg.labels:
    return 'data.labels are read on the host'
  if source.image_shape is None:
    return f'the images of {source.name} differ in size, or may'
  plain = cfg.crop in ('pad_crop', 'resize', 'none')
  if cfg.interpolation != 'bilinear' and not (
    plain and source.image_shape == size
  ):
    return f'data.interpolation={cfg.interpolation!r} runs on the host'
  if cfg.crop == 'none' and source.image_shape != size:
    return (
      f"data.crop='none' with images of {source.image_shape} and "
      f'data.image_size={size}'
    )
  return ''


def wants_cache(source: Source, cfg: Any) -> bool:
  """Whether `data.device_cache` puts this source on the device.

  'auto' does where it is possible and takes at most 1 GiB.

  Raises:
    ValueError: it is 'on' and not possible, or not one of 'on', 'off', 'auto'.
  """
  if cfg.device_cache not in ('on', 'off', 'auto'):
    raise ValueError(
      f"data.device_cache={cfg.device_cache!r}: must be 'on', 'off' or 'auto'"
    )
  if cfg.device_cache == 'off':
    return False
  reason = why_not_cached(source, cfg)
  if cfg.device_cache == 'on':
    if reason:
      raise ValueError(
        f"data.device_cache='on' is not possible: {reason}. "
        "Use 'auto' or 'off'."
      )
    return True
  return not reason and (
    len(source) * math.prod(source.image_shape) * 3 <= MAX_BYTES
  )


class DeviceCache:
  """A data set on the device and the order in which it is visited.

  Attributes:
    arrays: {'image': uint8 (N, H, W, 3), 'label': int32 (N,) or multi-hot
      float32 (N, C)}, the argument of the jitted step.
  """

  def __init__(
    self, source: Source, cfg: Any, seed: int, put: Callable = jnp.asarray
  ):
    """Reads the whole source.

    Args:
      source: images of one size.
      cfg: section `data` of a config.
      seed: the run's seed.
      put: moves a numpy array to the device or devices (replicated).
    """
    reason = why_not_cached(source, cfg)
    if reason:
      raise ValueError(f'this data cannot be held on the device: {reason}')
    transforms.TrainTransform(cfg)  # checks the keys
    images, labels = source.arrays()
    self.arrays = {'image': put(images), 'label': put(labels)}
    self._n, self._batch, self._repeats = (
      len(source),
      cfg.batch_size,
      max(cfg.repeats, 1),
    )
    self._seed = seed
    self._orders: dict[int, np.ndarray] = {}

  def indices(self, step: int) -> np.ndarray:
    """int32 (batch_size,): the examples of the global batch of a step."""
    position = (step * self._batch + np.arange(self._batch)) // self._repeats
    epochs, places = np.divmod(position, self._n)
    out = np.empty(self._batch, np.int32)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      out[here] = self._order(int(epoch))[places[here]]
    return out

  def _order(self, epoch: int) -> np.ndarray:
    """The permutation of an epoch, a pure function of (seed, epoch)."""
    if epoch not in self._orders:
      for old in [e for e in self._orders if e < epoch - 1]:
        del self._orders[old]
      self._orders[epoch] = np.random.Generator(
        np.random.Philox(key=[self._seed, epoch])
      ).permutation(self._n)
    return self._orders[epoch]


def cached_batch(
  arrays: dict, indices: jax.Array, key: jax.Array, cfg: Any
) -> dict[str, jax.Array]:
  """Gathers, crops, flips and resizes a batch; to be called inside jit.

  Args:
    arrays: `DeviceCache.arrays`.
    indices: int32 (B,).
    key: the random key of this step's augmentation.
    cfg: section `data` of a config (static).

  Returns:
    'image' float32 (B, height, width, 3) in [0, 255], 'label' as cached and
    'index' int32 (B,).
  """
  images = jnp.take(arrays['image'], indices, axis=0)
  _, height, width, _ = images.shape
  size = transforms.target_size(cfg)
  keys = jax.random.split(key, indices.shape[0])
  rows, columns = jax.vmap(lambda k: _draw(k, height, width, size, cfg))(keys)
  hi = jax.lax.Precision.HIGHEST
  images = jnp.einsum(
    'bih,bhwc->biwc', rows, images.astype(jnp.float32), precision=hi
  )
  images = jnp.einsum('bjw,biwc->bijc', columns, images, precision=hi)
  return {
    'image': images,
    'label': jnp.take(arrays['label'], indices, axis=0),
    'index': indices,
  }


def _draw(key, height, width, size, cfg):
  """One example's crop, flip and resize as matrices (out, in) by axis."""
  crop_key, flip_key = jax.random.split(key)
  if cfg.crop == 'inception':
    top, left, h, w = _inception_box(
      crop_key, height, width, tuple(cfg.area), tuple(cfg.aspect)
    )
    rows = _weights(top, h, top, top + h - 1, height, size[0])
    columns = _weights(left, w, left, left + w - 1, width, size[1])
  elif cfg.crop in ('resize_crop', 'squash_crop'):
    between = (
      transforms.short_side(height, width, cfg.resize)
      if cfg.crop == 'resize_crop'
      else (cfg.resize,) * 2
    )
    weights = []
    for k, old, mid, new in zip(
      jax.random.split(crop_key), (height, width), between, size, strict=True
    ):
      start = jax.random.randint(k, (), 0, mid - new + 1)
      scale = old / mid
      weights.append(_weights(start * scale, new * scale, 0, old - 1, old, new))
    rows, columns = weights
  else:
    pad = cfg.pad if cfg.crop == 'pad_crop' else 0
    top, left = jax.random.randint(crop_key, (2,), -pad, pad + 1)
    rows = _weights(top, height, top, top + height - 1, height, size[0])
    columns = _weights(left, width, left, left + width - 1, width, size[1])
  flip = jax.random.uniform(flip_key) < cfg.flip
  return rows, jnp.where(flip, columns[::-1], columns)


def _weights(start, length, low, high, old, new):
  """The matrix (new, old) that resizes [start, start + length) bilinearly.

  Half-pixel centres, kept within [low, high]; pixels outside the image count
  as zero. Equals OpenCV's INTER_LINEAR on the cut-out box.
  """
  place = (jnp.arange(new, dtype=jnp.float32) + 0.5) * (length / new) - 0.5
  place = jnp.clip(start + place, low, high)
  distance = jnp.abs(
    place[:, None] - jnp.arange(old, dtype=jnp.float32)[None, :]
  )
  return jnp.maximum(0.0, 1.0 - distance)


def _inception_box(key, height, width, area, aspect):
  """`transforms.inception_box` in jnp: ten attempts, the first that fits."""
  area_key, aspect_key, place_key = jax.random.split(key, 3)
  target = (
    height
    * width
    * jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
  )
  ratio = jnp.exp(
    jax.random.uniform(
      aspect_key, (10,), minval=math.log(aspect[0]), maxval=math.log(aspect[1])
    )
  )
  w, h = (
    jnp.round(jnp.sqrt(target * ratio)),
    jnp.round(jnp.sqrt(target / ratio)),
  )
  fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
  first = jnp.argmax(fits)
  if width / height < aspect[0]:
    last_w, last_h = width, min(height, round(width / aspect[0]))
  elif width / height > aspect[1]:
    last_w, last_h = min(width, round(height * aspect[1])), height
  else:
    last_w, last_h = width, height
  found = fits[first]
  w, h = jnp.where(found, w[first], last_w), jnp.where(found, h[first], last_h)
  u = jax.random.uniform(place_key, (2,))
  top = jnp.where(
    found, jnp.floor(u[0] * (height - h + 1)), (height - last_h) // 2
  )
  left = jnp.where(
    found, jnp.floor(u[1] * (width - w + 1)), (width - last_w) // 2
  )
  return top, left, h, w
