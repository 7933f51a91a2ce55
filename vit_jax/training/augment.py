"""Augmentation on the device, inside the compiled step.

Images arrive as uint8 (B, H, W, 3); `prepare_train` and `prepare_eval` make of
them what a model is given. All random numbers are drawn for global arrays from
a key that depends on (seed, step) alone, so the number of devices does not
change them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.preprocessing import NORMALIZATION, as_size
from vit_jax.resampling import bilinear_matrix
from vit_jax.training.mixing import inside_box, mix


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
  """(B,) int -> (B, C) float32, not smoothed: `losses.total_loss` smooths."""
  return jax.nn.one_hot(labels, num_classes)


def normalize(
  images: jax.Array | np.ndarray, style: str = 'half', dtype: Any = jnp.float32
) -> jax.Array:
  """(pixel - mean) / std of pixels in [0, 255], uint8 or float.

  Args:
    images: (B, H, W, 3).
    style: 'half' (to [-1, 1]) or 'imagenet' (the data set's mean and std).
    dtype: of the result; computed in float32.
  """
  if style not in NORMALIZATION:
    raise ValueError(
      f'data.normalize={style!r}; allowed: {", ".join(NORMALIZATION)}'
    )
  mean, std = (
    np.array(v, np.float32).reshape(1, 1, 1, 3) for v in NORMALIZATION[style]
  )
  pixels = jnp.asarray(images).astype(jnp.float32)
  return ((pixels - mean) / std).astype(dtype)


def resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear resize, half-pixel centers, no antialias, as two matmuls.

  Args:
    images: (B, H, W, 3), uint8 or float.
    size: int or (height, width).

  Returns:
    (B, height, width, 3) float32.
  """
  height, width = as_size(size)
  rows = bilinear_matrix(images.shape[1], height)
  columns = bilinear_matrix(images.shape[2], width)
  x = images.astype(jnp.float32)
  highest = jax.lax.Precision.HIGHEST
  x = jnp.einsum('oh,bhwc->bowc', rows, x, precision=highest)
  return jnp.einsum('ow,bhwc->bhoc', columns, x, precision=highest)


def random_erasing(
  images: jax.Array,
  key: jax.Array,
  prob: float,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
  attempts: int = 10,
) -> jax.Array:
  """Random erasing (arXiv:1708.04896) in timm's 'pixel' mode: one noise box.

  Args:
    images: (B, H, W, 3), normalized.
    key: random key.
    prob: probability per image.
    area: of the box, range as a fraction of the image, drawn uniformly.
    aspect: height / width, range, drawn log-uniformly.
    attempts: draws of (area, aspect) until the box fits; none: not erased.

  Returns:
    images with N(0, 1) inside the boxes.
  """
  b, height, width, _ = images.shape
  on_key, area_key, aspect_key, place_key, noise_key = jax.random.split(key, 5)
  target = (
    height
    * width
    * jax.random.uniform(
      area_key, (b, attempts), minval=area[0], maxval=area[1]
    )
  )
  ratio = jnp.exp(
    jax.random.uniform(
      aspect_key,
      (b, attempts),
      minval=np.log(aspect[0]),
      maxval=np.log(aspect[1]),
    )
  )
  h = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
  fits = (h < height) & (w < width)
  first = jnp.argmax(fits, axis=1)[:, None]
  h = jnp.take_along_axis(h, first, axis=1)[:, 0]
  w = jnp.take_along_axis(w, first, axis=1)[:, 0]
  erase = fits.any(axis=1) & jax.random.bernoulli(on_key, prob, (b,))
  place = jax.random.uniform(place_key, (2, b))
  # Every place where the box fits is equally likely, borders included.
  top = jnp.floor(place[0] * (height - h + 1)).astype(jnp.int32)
  left = jnp.floor(place[1] * (width - w + 1)).astype(jnp.int32)
  inside = inside_box(
    jnp.stack([top, top + h, left, left + w], axis=1), height, width
  )
  inside &= erase[:, None, None, None]
  noise = jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.where(inside, noise, images)


def prepare_train(
  images: jax.Array,
  targets: dict,
  key: jax.Array,
  cfg: Any,
  dtype: Any = jnp.float32,
  slices: int = 1,
) -> tuple[jax.Array, dict]:
  """uint8 images -> what the model is trained on.

  Device resize, normalization, random erasing, mixing, in this order (erasing
  last with `data.erase_mixed`); crop and flip have been done, on the host or in
  `data.device_cache`.

  Args:
    images: (B, H, W, 3) uint8.
    targets: dict, see `mix`.
    key: random key of the step.
    cfg: the recipe's `data` section.
    dtype: compute dtype of the model.
    slices: accumulation slices of the batch.

  Returns:
    Images (B, H', W', 3) of `dtype`, and the targets.
  """
  erase_key, mix_key = jax.random.split(key)
  erase = lambda x: (
    random_erasing(x, erase_key, cfg.erasing) if cfg.erasing else x
  )
  images = prepare_eval(images, cfg)
  if not cfg.erase_mixed:
    images = erase(images)
  images, targets = mix(images, targets, mix_key, cfg, slices)
  if cfg.erase_mixed:
    images = erase(images)
  return images.astype(dtype), targets


def prepare_eval(
  images: jax.Array, cfg: Any, dtype: Any = jnp.float32
) -> jax.Array:
  """uint8 images (B, H, W, 3) -> normalized, at data.image_size."""
  size = cfg.image_size, cfg.image_width or cfg.image_size
  if cfg.device_resize and images.shape[1:3] != size:
    images = resize(images, size)
  return normalize(images, cfg.normalize, dtype)
