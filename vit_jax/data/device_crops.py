"""Random crops of images on the device, as matrices that resize them.

The functions of `crops` and the cropping of `transforms.TrainTransform` in
jax.numpy, for images that all have one size. The crops have the same
distribution as on the host, but not the same random numbers.
"""

import math

import jax
import jax.numpy as jnp

from vit_jax.data import crops
from vit_jax.data.transforms import TrainTransform
from vit_jax.resampling import bilinear_matrix

# (top, left, height, width) in pixels, scalars that may be traced.
DeviceBox = tuple[
  jax.typing.ArrayLike,
  jax.typing.ArrayLike,
  jax.typing.ArrayLike,
  jax.typing.ArrayLike,
]


def crop_matrices(
  key: jax.Array, height: int, width: int, transform: TrainTransform
) -> tuple[jax.Array, jax.Array]:
  """Crop, flip and resize of one example, drawn at random.

  Args:
    key: random key of the example.
    height, width: size of the image in pixels.
    transform: the crop and flip to draw; its interpolation must be 'bilinear'.

  Returns:
    Matrices (new, old) for the rows and the columns of the image. Pixels
    outside of the image count as zero.
  """
  size = transform.size
  crop_key, flip_key = jax.random.split(key)
  if transform.crop in ('resize_crop', 'squash_crop'):
    rows, columns = _resized_crop(crop_key, height, width, transform)
  else:
    top, left, box_height, box_width = draw_box(
      crop_key, height, width, transform
    )
    rows = bilinear_matrix(
      height,
      size[0],
      start=top,
      length=box_height,
      low=top,
      high=top + box_height - 1,
      xp=jnp,
    )
    columns = bilinear_matrix(
      width,
      size[1],
      start=left,
      length=box_width,
      low=left,
      high=left + box_width - 1,
      xp=jnp,
    )
  flip = jax.random.uniform(flip_key) < transform.flip
  return rows, jnp.where(flip, columns[::-1], columns)


def _resized_crop(key, height, width, transform: TrainTransform):
  """Matrices that resize the image and take a random box of the result."""
  matrices = []
  resized = transform.resized_size(height, width)
  for axis_key, old, middle, new in zip(
    jax.random.split(key), (height, width), resized, transform.size, strict=True
  ):
    start = jax.random.randint(axis_key, (), 0, middle - new + 1)
    scale = old / middle
    matrices.append(
      bilinear_matrix(old, new, start=start * scale, length=new * scale, xp=jnp)
    )
  return matrices


def draw_box(
  key: jax.Array, height: int, width: int, transform: TrainTransform
) -> DeviceBox:
  """`TrainTransform.draw_box` on the device, without the two resized crops."""
  if transform.crop == 'inception':
    draw = SAMPLERS[transform.crop_sampling]
    return draw(key, height, width, transform.area, transform.aspect)
  pad = transform.pad if transform.crop == 'pad_crop' else 0
  top, left = jax.random.randint(key, (2,), -pad, pad + 1)
  return top, left, height, width


def area_uniform_box(
  key: jax.Array,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> DeviceBox:
  """`crops.area_uniform_box` on the device.

  All ten boxes are drawn at once, and the first one that fits is taken.
  """
  attempts = (crops.TORCHVISION_ATTEMPTS,)
  area_key, aspect_key, offset_key = jax.random.split(key, 3)
  target = (
    height
    * width
    * jax.random.uniform(area_key, attempts, minval=area[0], maxval=area[1])
  )
  ratio = jnp.exp(
    jax.random.uniform(
      aspect_key,
      attempts,
      minval=math.log(aspect[0]),
      maxval=math.log(aspect[1]),
    )
  )
  w = jnp.round(jnp.sqrt(target * ratio))
  h = jnp.round(jnp.sqrt(target / ratio))
  fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
  first = jnp.argmax(fits)
  last_h, last_w = crops.largest_box(height, width, aspect)
  w = jnp.where(fits[first], w[first], last_w)
  h = jnp.where(fits[first], h[first], last_h)
  u = jax.random.uniform(offset_key, (2,))
  top = jnp.floor(u[0] * (height - h + 1))
  left = jnp.floor(u[1] * (width - w + 1))
  return (
    jnp.where(fits[first], top, (height - last_h) // 2),
    jnp.where(fits[first], left, (width - last_w) // 2),
    h,
    w,
  )


def height_uniform_box(
  key: jax.Array,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> DeviceBox:
  """`crops.height_uniform_box` on the device.

  All hundred boxes are drawn at once, and the first one that fits is taken.
  """
  attempts = (crops.TENSORFLOW_ATTEMPTS,)
  least, most = (a * height * width for a in area)
  aspect_key, height_key, offset_key = jax.random.split(key, 3)
  ratio = jax.random.uniform(
    aspect_key, attempts, minval=aspect[0], maxval=aspect[1]
  )
  highest = jnp.round(jnp.sqrt(most / ratio))
  limit = jnp.floor((width + 0.5) / ratio)
  limit = jnp.where(jnp.round(limit * ratio) > width, limit - 1, limit)
  highest = jnp.where(jnp.round(highest * ratio) > width, limit, highest)
  highest = jnp.minimum(highest, height)
  lowest = jnp.minimum(jnp.round(jnp.sqrt(least / ratio)), highest)
  u = jax.random.uniform(height_key, attempts)
  h = lowest + jnp.floor(u * (highest - lowest + 1))
  w = jnp.round(h * ratio)
  h = jnp.where(h * w < least, h + 1, h)  # it was too small by rounding
  w = jnp.round(h * ratio)
  h = jnp.where(h * w > most, h - 1, h)
  w = jnp.round(h * ratio)
  fits = (h * w >= least) & (h * w <= most)
  fits &= (h > 0) & (h <= height) & (w > 0) & (w <= width)
  first = jnp.argmax(fits)
  h = jnp.where(fits[first], h[first], height)
  w = jnp.where(fits[first], w[first], width)
  # As in TensorFlow, the range of the offset excludes its upper end.
  u = jax.random.uniform(offset_key, (2,))
  return jnp.floor(u[0] * (height - h)), jnp.floor(u[1] * (width - w)), h, w


SAMPLERS = {'area': area_uniform_box, 'height': height_uniform_box}
