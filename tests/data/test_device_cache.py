"""The data set on the device: order, crops, labels."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import device_cache, transforms
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source, Subset
from vit_jax.recipe.keys import default_config


def data_config(**keys):
  cfg = default_config().data
  cfg.image_size, cfg.batch_size = 8, 100
  cfg.update(keys)
  return cfg


@pytest.fixture(scope='module')
def digits():
  return open_source('digits', split='train')


def test_order_is_a_function_of_seed_and_step(digits):
  cfg = data_config(crop='none')
  one, two = (device_cache.DeviceCache(digits, cfg, seed=1) for _ in range(2))
  order = [one.indices(step) for step in range(31)]
  for step in (30, 3, 14, 0):  # in any order, also across epochs
    np.testing.assert_array_equal(two.indices(step), order[step])
  flat = np.concatenate(order)
  assert flat.dtype == np.int32
  assert sorted(flat[:1437]) == list(range(1437))
  assert sorted(flat[1437:2874]) == list(range(1437))
  assert not np.array_equal(flat[:1437], flat[1437:2874])
  other = device_cache.DeviceCache(digits, cfg, seed=2)
  assert not np.array_equal(other.indices(0), order[0])


def test_repeats(digits):
  repeated = device_cache.DeviceCache(
    digits, data_config(crop='none', repeats=4), seed=1
  )
  plain = device_cache.DeviceCache(digits, data_config(crop='none'), seed=1)
  index = np.concatenate([repeated.indices(s) for s in range(2)])
  np.testing.assert_array_equal(index[::4], plain.indices(0)[:50])
  assert (index.reshape(-1, 4) == index[::4, None]).all()


def batches(source, cfg, keys):
  """The batch of step 0 with each of the keys, as numpy, and its indices."""
  held = device_cache.DeviceCache(source, cfg, seed=1)
  indices = held.indices(0)
  make = jax.jit(lambda a, i, k: device_cache.cached_batch(a, i, k, cfg))
  return [
    jax.device_get(make(held.arrays, indices, jax.random.key(key)))
    for key in keys
  ], indices


def batch(source, cfg):
  (out,), indices = batches(source, cfg, [0])
  return out, source.arrays(), indices


def test_plain_and_flipped_images(digits):
  out, (images, labels), index = batch(
    digits, data_config(crop='none', flip=0.0)
  )
  np.testing.assert_array_equal(out['image'], images[index])
  np.testing.assert_array_equal(out['label'], labels[index])
  np.testing.assert_array_equal(out['index'], index)
  out, _, _ = batch(digits, data_config(crop='none', flip=1.0))
  np.testing.assert_array_equal(out['image'], images[index][:, :, ::-1])
  out, _, _ = batch(digits, data_config(crop='none', flip=0.5))
  kept = (out['image'] == images[index]).all((1, 2, 3))
  assert 30 < kept.sum() < 70


def test_pad_crop(digits):
  out, (images, _), index = batch(
    digits, data_config(crop='pad_crop', pad=2, flip=0.0)
  )
  shifts = set()
  for got, image in zip(out['image'], images[index]):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(padded[y : y + 8, x : x + 8], got)
    ]
    assert places
    shifts.update(places)
  assert len(shifts) > 20  # of 25, among 100 images


def test_squash_equals_opencv(digits):
  cfg = data_config(crop='resize', image_size=20, image_width=13, flip=0.0)
  out, (images, _), index = batch(digits, cfg)
  for got, image in zip(out['image'][:20], images[index]):
    want = cv2.resize(image.astype(np.float32), (13, 20))
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_inception_crops_equal_opencv_on_their_boxes():
  h, w, top, left = 9, 14, 5, 2
  image = (
    np.random.default_rng(0).uniform(0, 255, (24, 20, 3)).astype(np.float32)
  )
  rows = device_cache._weights(top, h, top, top + h - 1, 24, 16)
  columns = device_cache._weights(left, w, left, left + w - 1, 20, 16)
  got = jnp.einsum('ih,hwc,jw->ijc', rows, image, columns, precision='highest')
  want = cv2.resize(image[top : top + h, left : left + w], (16, 16))
  np.testing.assert_allclose(got, want, atol=1e-3)


def test_inception_boxes_are_distributed_as_on_the_host():
  keys = jax.random.split(jax.random.key(0), 2000)
  area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
  boxes = np.asarray(
    jax.jit(
      jax.vmap(
        lambda k: jnp.stack(
          device_cache._inception_box(k, 60, 80, area, aspect)
        )
      )
    )(keys)
  )
  rng = np.random.default_rng(0)
  host = np.array(
    [transforms.inception_box(rng, 60, 80, area, aspect) for _ in range(2000)]
  )
  top, left, h, w = boxes.T
  assert (top >= 0).all() and (top + h <= 60).all()
  assert (left >= 0).all() and (left + w <= 80).all()
  assert (boxes == np.round(boxes)).all()
  for ours, theirs in zip(boxes.T, host.T):
    np.testing.assert_allclose(ours.mean(), theirs.mean(), atol=1.2)
    np.testing.assert_allclose(ours.std(), theirs.std(), atol=1.2)


@pytest.mark.parametrize(
  'keys',
  [
    {'crop': 'inception', 'image_size': 24},
    {'crop': 'resize_crop', 'resize': 12, 'image_size': 10},
    {'crop': 'squash_crop', 'resize': 9, 'image_size': 7},
    {'crop': 'pad_crop', 'pad': 1, 'image_size': 12},
  ],
)
def test_crops_are_a_function_of_the_key(digits, keys):
  cfg = data_config(**keys)
  a, b, c = (b['image'] for b in batches(digits, cfg, (0, 0, 1))[0])
  assert a.shape == (100, cfg.image_size, cfg.image_size, 3)
  assert a.dtype == np.float32 and a.min() >= 0 and a.max() <= 255.001
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)


def test_resize_crop_is_a_cut_of_the_resized_image(digits):
  cfg = data_config(crop='resize_crop', resize=12, image_size=10, flip=0.0)
  out, (images, _), index = batch(digits, cfg)
  for got, image in zip(out['image'][:20], images[index]):
    whole = cv2.resize(image.astype(np.float32), (12, 12))
    assert any(
      np.abs(whole[y : y + 10, x : x + 10] - got).max() < 2e-3
      for y in range(3)
      for x in range(3)
    )


def test_multi_label(digits):
  class Multi(Subset):
    multi_label = True

    def __init__(self):
      super().__init__(digits, 0, 200, 'multi')
      self.multi_label = True

    def __getitem__(self, i):
      example = super().__getitem__(i)
      return {**example, 'label': [example['label'], 3]}

    def arrays(self):
      return Source.arrays(self)

  out, (_, labels), index = batch(Multi(), data_config(crop='none'))
  assert out['label'].shape == (100, 10)
  np.testing.assert_array_equal(out['label'], labels[index])
  assert (out['label'][:, 3] == 1).all()


def test_when_a_set_is_cached(digits):
  assert device_cache.wants_cache(digits, data_config())
  assert not device_cache.wants_cache(digits, data_config(device_cache='off'))
  for keys, reason in (
    ({'randaugment': 'google(2,5)'}, 'randaugment'),
    ({'interpolation': 'bicubic'}, 'interpolation'),
    ({'color_jitter': 0.1}, 'color_jitter'),
    ({'crop': 'none', 'image_size': 9}, 'crop'),
  ):
    assert not device_cache.wants_cache(digits, data_config(**keys))
    with pytest.raises(ValueError, match=f'not possible: .*{reason}'):
      device_cache.wants_cache(digits, data_config(device_cache='on', **keys))
  with pytest.raises(ValueError, match="must be 'on', 'off'"):
    device_cache.wants_cache(digits, data_config(device_cache='maybe'))
  large = open_source(
    'synthetic', split='train', num_examples=1_000_000, image_size=64
  )
  assert not device_cache.wants_cache(large, data_config())
