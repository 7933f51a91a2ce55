"""Augmentation on the device, inside the compiled step.

Images arrive as uint8 (B, H, W, 3), and `prepare_train` and `prepare_eval` turn
them into the input of the model. Random numbers are drawn for global arrays,
from a key that depends only on (seed, step), so the number of devices does not
change them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.preprocessing import as_size, normalization
from vit_jax.resampling import bilinear_matrix
from vit_jax.training.mixing import inside_box, mix


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
  """(B,) int -> (B, C) float32, not smoothed: `losses.total_loss` smooths."""
  return jax.nn.one_hot(labels, num_classes)


def normalize(
  images: jax.Array | np.ndarray,
  style: str = 'half',
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """Normalizes pixels: (pixel - mean) / std.

  Args:
    images: (B, H, W, 3), uint8 or float, in [0, 255].
    style: see `preprocessing.normalization`.
    dtype: type of the result, which is computed in float32.

  Raises:
    ValueError: an unknown style.
  """
  mean, std = (
    np.array(v, np.float32).reshape(1, 1, 1, 3) for v in normalization(style)
  )
  pixels = jnp.asarray(images).astype(jnp.float32)
  return ((pixels - mean) / std).astype(dtype)


def resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear resize, half-pixel centers, no antialias, as two matmuls.

  Args:
    images: (B, H, W, 3), uint8 or float.
    size: (height, width) of the result.

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
  """Random erasing (arXiv:1708.04896), as timm's mode 'pixel' with one box.

  Args:
    images: (B, H, W, 3), normalized.
    key: random key.
    prob: probability that an image gets a box.
    area: range of the area of the box, as fractions of the image's; uniform.
    aspect: range of its height / width; the logarithm is uniform.
    attempts: number of draws of (area, aspect). The first box that fits is
      used; if none fits, the image stays as it is.

  Returns:
    The images, with numbers from N(0, 1) inside the boxes.
  """
  b, height, width, _ = images.shape
  on_key, area_key, aspect_key, corner_key, noise_key = jax.random.split(key, 5)
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
  corner = jax.random.uniform(corner_key, (2, b))
  # Every position where the box fits is equally likely, also at the border.
  top = jnp.floor(corner[0] * (height - h + 1)).astype(jnp.int32)
  left = jnp.floor(corner[1] * (width - w + 1)).astype(jnp.int32)
  inside = inside_box(
    jnp.stack([top, top + h, left, left + w], axis=1), height, width
  )
  inside &= erase[:, None, None, None]
  noise = jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.where(inside, noise, images)


def prepare_train(
  images: jax.Array,
  targets: dict[str, jax.Array],
  key: jax.Array,
  cfg: Any,
  dtype: jax.typing.DTypeLike = jnp.float32,
  slices: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Turns uint8 images into the model's input for training.

  Images are resized (with data.device_resize), normalized, erased and mixed, in
  this order; with data.erase_mixed they are erased after mixing. The host or
  `data.device_cache` has already cropped and flipped them.

  Args:
    images: (B, H, W, 3) uint8.
    targets: see `mixing.mix`.
    key: random key of the step.
    cfg: the recipe's `data` section.
    dtype: compute dtype of the model.
    slices: number of micro-batches of the step.

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
  images: jax.Array, cfg: Any, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
  """Turns uint8 images (B, H, W, 3) into the model's input for evaluation.

  They are resized (with data.device_resize) and normalized.
  """
  size = cfg.image_size, cfg.image_width or cfg.image_size
  if cfg.device_resize and images.shape[1:3] != size:
    images = resize(images, size)
  return normalize(images, cfg.normalize, dtype)
