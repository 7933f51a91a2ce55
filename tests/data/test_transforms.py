"""Transforms of training and evaluation images."""

import numpy as np
import pytest

from tests.data.helpers import make_image, recipe
from vit_jax.data import transforms
from vit_jax.data.resize import resize
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import data as recipe_data
from vit_jax.recipe.keys import host_shape


def test_eval_crop_rounds_as_torchvision():
  # Shorter side 438 = floor(384 / 0.875), longer int(438 * 500 / 375) = 584.
  image = np.zeros((375, 500, 3), np.uint8)
  preprocessing = Preprocessing((384, 384), 0.875, interpolation='bicubic')
  assert transforms.eval_image(image, preprocessing).shape == (384, 384, 3)
  assert transforms.short_side(375, 500, 438) == (438, 584)
  assert transforms.short_side(500, 333, 256) == (384, 256)
  # A ramp shows the offset of the crop: (256 - 225) / 2 = 15.5 rounds to 16.
  ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)
  ramp = np.repeat(ramp[..., None], 3, 2)
  out = transforms.eval_image(ramp, Preprocessing((225, 225), 225 / 256))
  assert out[0, 0, 0] == 16 and out.shape == (225, 225, 3)


def test_eval_crop_above_one_pads():
  image = np.full((60, 80, 3), 200, np.uint8)
  out = transforms.eval_image(image, Preprocessing((57, 57), 1.15))
  inside = out[..., 0] > 0
  assert inside.sum(0).max() == 49  # floor(57 / 1.15)
  rows = np.flatnonzero(inside.any(1))
  assert (rows[0], rows[-1]) == (4, 52)
  assert inside.any(0).all()  # 65 pixels wide, so it is cut and not padded


def test_eval_rectangle_and_squash():
  image = make_image(1, 60, 80)
  cropped = transforms.eval_image(image, Preprocessing((24, 40), 0.9))
  assert cropped.shape == (24, 40, 3)
  np.testing.assert_array_equal(
    transforms.eval_image(image, Preprocessing((24, 40))),
    resize(image, (24, 40)),
  )


def test_eval_crop_of_big_vision():
  image = make_image(1, 60, 81)
  make = lambda **options: transforms.eval_image(
    image,
    Preprocessing(
      (32, 32), 0.8, interpolation='area', rounding='truncate', **options
    ),
  )
  # The shorter side becomes 40, the longer one 54, not 53 as in torchvision.
  resized = resize(image, (40, 54), 'area', 'truncate')
  np.testing.assert_array_equal(
    make(crop_resize='resize_small'), resized[4:36, 11:43]
  )
  np.testing.assert_array_equal(
    make(crop_resize='squash'),
    resize(image, (40, 40), 'area', 'truncate')[4:36, 4:36],
  )
  # The longer side becomes 32 / 0.8; above and below there are no pixels.
  resized = resize(image, (30, 40), 'area', 'truncate')
  out = make(crop_resize='resize_long')
  np.testing.assert_array_equal(out[1:31], resized[:, 4:36])
  assert not out[0].any() and not out[31].any()


@pytest.mark.parametrize(
  'keys',
  [
    {'crop': 'inception'},
    {'crop': 'inception', 'interpolation': 'bicubic'},
    {'crop': 'inception', 'interpolation': 'random', 'color_jitter': 0.4},
    {'crop': 'resize_crop', 'resize': 20},
    {'crop': 'pad_crop'},
    {'crop': 'squash_crop', 'resize': 20},
    {'crop': 'resize', 'randaugment': 'google(2,15)'},
    {'crop': 'inception', 'randaugment': 'rand-m9-mstd0.5-inc1'},
    {'crop': 'inception', 'crop_sampling': 'height'},
    {'rounding': 'truncate', 'crop': 'resize_crop', 'resize': 20},
    {'rounding': 'none'},
    {'interpolation': 'area', 'rounding': 'truncate'},
    {'device_resize': 8},
    {'image_size': 16, 'image_width': 12},
  ],
)
def test_train_transform(keys):
  config = recipe(**keys)
  size = host_shape(config)
  transform = recipe_data.train_transform(config, size)
  assert size == (
    (8, 8) if 'device_resize' in keys else (16, keys.get('image_width', 16))
  )
  outputs = []
  for seed in (0, 0, 1):
    out, geometry = transform(make_image(4), np.random.default_rng(seed))
    assert out.shape == (*size, 3)
    assert out.dtype == (
      np.float32 if keys.get('rounding') == 'none' else np.uint8
    )
    assert len(geometry.box) == 4
    outputs.append(out)
  np.testing.assert_array_equal(outputs[0], outputs[1])


def test_geometry_describes_the_crop():
  transform = transforms.TrainTransform((64, 64), area=(0.2, 0.6))
  ramp = np.zeros((100, 100, 3), np.uint8)
  ramp[..., 0] = np.arange(100)[:, None] * 2
  ramp[..., 1] = np.arange(100) * 2
  flips = set()
  for seed in range(12):
    out, geometry = transform(ramp, np.random.default_rng(seed))
    top, left, h, w = geometry.box
    center = out[31:33, 31:33].mean((0, 1))
    np.testing.assert_allclose(
      center[:2] / 200, [top + h / 2 - 0.005, left + w / 2 - 0.005], atol=0.015
    )
    assert (out[0, 0, 1] > out[0, -1, 1]) == geometry.flip
    flips.add(bool(geometry.flip))
  assert flips == {False, True}


@pytest.mark.parametrize(
  'crop, crop_resize', [(None, 'timm'), (0.875, 'timm'), (1.15, 'resize_small')]
)
def test_eval_window_is_what_the_model_sees(crop, crop_resize):
  """In an image of column numbers, the pixels tell where they come from."""
  p = Preprocessing((16, 16), crop, 'bicubic', crop_resize=crop_resize)
  image = np.zeros((120, 240, 3), np.uint8)
  image[:] = np.arange(240)[None, :, None]
  top, left, height, width = transforms.eval_window(120, 240, p)
  seen = transforms.eval_image(image, p)[8, :, 0].astype(float)
  centers = left + (np.arange(16) + 0.5) * width / 16 - 0.5
  inside = slice(2, 14)  # the borders are padded or less smooth
  np.testing.assert_allclose(seen[inside], centers[inside], atol=1.5)
  assert top + height / 2 == pytest.approx(60, abs=4)


@pytest.mark.parametrize(
  'keys',
  [
    {'rounding': 'truncate'},
    {'rounding': 'none'},
    {'rounding': 'nearest'},
    {'interpolation': 'bicubic'},
    {'interpolation': 'bicubic', 'randaugment': 'rand-m9'},
    {'color_jitter': 0.4},
    {'crop': 'pad_crop'},
  ],
)
def test_an_image_is_the_same_in_its_place_in_a_batch(keys):
  transform = transforms.TrainTransform((20, 24), **keys)
  image = make_image(3)
  batch = np.full((8, 20, 24, 3), 77, transform.dtype)
  for seed, place in enumerate(batch):
    alone, geometry = transform(image, np.random.default_rng(seed))
    result, again = transform(image, np.random.default_rng(seed), place)
    assert result is place and geometry == again
    assert alone.dtype == place.dtype
    np.testing.assert_array_equal(place, alone)
  np.testing.assert_array_equal(image, make_image(3))
