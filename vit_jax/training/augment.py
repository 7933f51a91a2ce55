"""Augmentation on the device, inside the compiled step.

Images arrive as uint8 (B, H, W, 3). `prepare_train` and `prepare_eval` are the
whole way to what a model is given; the steps are public too, and those that
draw random numbers are split from those that apply them (`apply_mixup`,
`apply_cutmix`). All draws are made on global arrays from a key that depends on
(seed, step) alone, and partners are taken across the global batch, so the
number of devices does not change them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.preprocessing import NORMALIZATION

# The image that each one is mixed with: the batch reversed (timm) or rolled by
# one (Google).
PARTNER = {
  'timm': lambda x: x[::-1],
  'google': lambda x: jnp.roll(x, 1, axis=0),
}


def one_hot(labels, num_classes: int, smoothing: float = 0.0):
  """(B,) int -> (B, C) float32; e / C off, 1 - e + e / C on (as timm).

  `losses.total_loss` smooths its targets itself: give it unsmoothed ones.
  """
  off = smoothing / num_classes
  return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + off


def normalize(images, style: str = 'half', dtype=jnp.float32):
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
  return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def _bilinear(size_in: int, size_out: int) -> np.ndarray:
  """(out, in) weights of half-pixel bilinear sampling without antialias."""
  x = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
  x = np.clip(x, 0, size_in - 1)
  low = np.floor(x).astype(int)
  high = np.minimum(low + 1, size_in - 1)
  weights = np.zeros((size_out, size_in), np.float32)
  np.add.at(weights, (np.arange(size_out), low), 1 - (x - low))
  np.add.at(weights, (np.arange(size_out), high), x - low)
  return weights


def resize(images, size):
  """Bilinear resize, half-pixel centres, no antialias, as two matmuls.

  Args:
    images: (B, H, W, 3), uint8 or float.
    size: int or (height, width).

  Returns:
    (B, height, width, 3) float32.
  """
  height, width = (size, size) if isinstance(size, int) else size
  rows = _bilinear(images.shape[1], height)
  columns = _bilinear(images.shape[2], width)
  x = images.astype(jnp.float32)
  highest = jax.lax.Precision.HIGHEST
  x = jnp.einsum('oh,bhwc->bowc', rows, x, precision=highest)
  return jnp.einsum('ow,bhwc->bhoc', columns, x, precision=highest)


def random_erasing(
  images,
  key,
  prob: float,
  area=(0.02, 1 / 3),
  aspect=(0.3, 1 / 0.3),
  attempts: int = 10,
):
  """Random erasing (arXiv:1708.04896) in timm's 'pixel' mode: one noise box.

  Args:
    images: (B, H, W, 3), normalised.
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
  inside = _inside(
    jnp.stack([top, top + h, left, left + w], axis=1), height, width
  )
  inside &= erase[:, None, None, None]
  noise = jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.where(inside, noise, images)


def _inside(box, height: int, width: int):
  """Boxes (B, 4) of (top, bottom, left, right) -> bool (B, H, W, 1)."""
  top, bottom, left, right = (box[:, i, None, None, None] for i in range(4))
  y = jnp.arange(height).reshape(1, -1, 1, 1)
  x = jnp.arange(width).reshape(1, 1, -1, 1)
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _lambda(lam, like):
  """A scalar, or (B,) shaped to broadcast with `like` (B, ...)."""
  lam = jnp.asarray(lam, jnp.float32)
  if lam.ndim == 0:
    return lam
  return lam.reshape(-1, *(1,) * (like.ndim - 1))


def _blend(x, weight, partner):
  """weight * x + (1 - weight) * partner(x), computed in float32."""
  y = x.astype(jnp.float32)
  return (weight * y + (1 - weight) * partner(y)).astype(x.dtype)


def apply_mixup(images, targets, lam, style: str = 'timm'):
  """Mixup (arXiv:1710.09412): lam * x + (1 - lam) * its partner.

  Args:
    images: (B, H, W, 3).
    targets: array (B, ...) or a tree of them, mixed the same way.
    lam: scalar, or (B,), one per example.
    style: key of PARTNER.

  Returns:
    Mixed images and targets.
  """
  mix_leaf = lambda x: _blend(x, _lambda(lam, x), PARTNER[style])
  return mix_leaf(images), jax.tree.map(mix_leaf, targets)


def apply_cutmix(images, targets, box, lam=None, style: str = 'timm'):
  """CutMix (arXiv:1905.04899): a box is taken from the partner.

  Args:
    images: (B, H, W, 3).
    targets: array (B, ...) or a tree of them, mixed by the area.
    box: (top, bottom, left, right), or (B, 4), one per example.
    lam: weight of an example's own targets, scalar or (B,); None: 1 - the
      box's part of the area.
    style: key of PARTNER.

  Returns:
    Mixed images and targets.
  """
  height, width = images.shape[1:3]
  box = jnp.asarray(box)
  if lam is None:
    lam = box_lambda(box, height, width)
  inside = _inside(jnp.atleast_2d(box), height, width)
  images = jnp.where(inside, PARTNER[style](images), images)
  mix_leaf = lambda x: _blend(x, _lambda(lam, x), PARTNER[style])
  return images, jax.tree.map(mix_leaf, targets)


def box_lambda(box, height: int, width: int):
  """1 - the part of the image that the box (..., 4) covers."""
  top, bottom, left, right = (box[..., i] for i in range(4))
  return 1 - (bottom - top) * (right - left) / (height * width)


def random_box(key, lam, height: int, width: int):
  """A box of sides sqrt(1 - lam), uniform centre, clipped: (4,) int32."""
  side = jnp.sqrt(1 - lam)
  half_h = (height * side).astype(jnp.int32) // 2
  half_w = (width * side).astype(jnp.int32) // 2
  y_key, x_key = jax.random.split(key)
  y = jax.random.randint(y_key, (), 0, height)
  x = jax.random.randint(x_key, (), 0, width)
  return jnp.stack(
    [
      jnp.clip(y - half_h, 0, height),
      jnp.clip(y + half_h, 0, height),
      jnp.clip(x - half_w, 0, width),
      jnp.clip(x + half_w, 0, width),
    ]
  )


def mixup_lambda(key, alpha: float, style: str = 'timm'):
  """lam ~ Beta(alpha, alpha); Google takes max(lam, 1 - lam)."""
  lam = jax.random.beta(key, alpha, alpha)
  return jnp.maximum(lam, 1 - lam) if style == 'google' else lam


def mix(images, targets, key, cfg):
  """Mixup or CutMix of a batch, one draw for all of it.

  Args:
    images: (B, H, W, 3), normalised.
    targets: dict of arrays (B, ...), as `losses.total_loss` takes them.
    key: random key.
    cfg: the recipe's `data` section: mixup, cutmix, switch_prob, mix_prob,
      mix_style.

  Returns:
    Mixed images and targets.
  """
  if cfg.mix_style not in PARTNER:
    raise ValueError(
      f'data.mix_style={cfg.mix_style!r}; allowed: {", ".join(PARTNER)}'
    )
  for name in ('mixup', 'cutmix'):
    if cfg[name] < 0:
      raise ValueError(f'data.{name}={cfg[name]}: a Beta parameter, 0 for off')
  if not cfg.mixup and not cfg.cutmix:
    return images, targets
  if cfg.cutmix and 'token_labels' in targets:
    raise ValueError(
      'token labels do not go with data.cutmix: set it to 0 '
      '(the model mixes tokens itself)'
    )
  height, width = images.shape[1:3]
  on_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
  on = jax.random.bernoulli(on_key, cfg.mix_prob)
  lam, weight = jnp.float32(1), jnp.float32(1)
  if cfg.mixup:
    lam = weight = mixup_lambda(mixup_key, cfg.mixup, cfg.mix_style)
  if cfg.cutmix:
    drawn = jax.random.beta(cutmix_key, cfg.cutmix, cfg.cutmix)
    box = random_box(box_key, drawn, height, width)
    outside = 1.0 - _inside(box[None], height, width)
    switch = (
      jax.random.bernoulli(switch_key, cfg.switch_prob) if cfg.mixup else True
    )
    lam = jnp.where(switch, box_lambda(box, height, width), lam)
    weight = jnp.where(switch, outside, weight)
  lam = jnp.where(on, lam, 1.0)
  weight = jnp.where(on, weight, 1.0)
  partner = PARTNER[cfg.mix_style]
  return (
    _blend(images, weight, partner),
    jax.tree.map(lambda t: _blend(t, lam, partner), targets),
  )


def prepare_train(images, targets, key, cfg, dtype=jnp.float32):
  """uint8 images -> what the model is trained on.

  Device resize, normalisation, random erasing, mixing, in this order; crop and
  flip have been done (on the host, or in `data.cache`).

  Args:
    images: (B, H, W, 3) uint8.
    targets: dict, see `mix`.
    key: random key of the step.
    cfg: the recipe's `data` section.
    dtype: compute dtype of the model.

  Returns:
    Images (B, H', W', 3) of `dtype`, and the targets.
  """
  erase_key, mix_key = jax.random.split(key)
  images = prepare_eval(images, cfg)
  if cfg.erasing:
    images = random_erasing(images, erase_key, cfg.erasing)
  images, targets = mix(images, targets, mix_key, cfg)
  return images.astype(dtype), targets


def prepare_eval(images, cfg, dtype=jnp.float32):
  """uint8 images (B, H, W, 3) -> normalised, at data.image_size."""
  size = cfg.image_size, cfg.image_width or cfg.image_size
  if cfg.device_resize and images.shape[1:3] != size:
    images = resize(images, size)
  return normalize(images, cfg.normalize, dtype)
