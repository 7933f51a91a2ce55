"""The data set on the device: order, crops, labels."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import crops, device_cache, device_crops
from vit_jax.data.decode import DEFAULT_DECODING
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source, Subset
from vit_jax.data.transforms import TrainTransform
from vit_jax.resampling import bilinear_matrix


def transform(size=(8, 8), **fields):
  return TrainTransform(size, **fields)


def hold(source, transform, batch_size=100, **options):
  return device_cache.DeviceCache(
    source, transform, batch_size=batch_size, **options
  )


@pytest.fixture(scope='module')
def digits():
  return open_source('digits', split='train')


def test_order_is_a_function_of_seed_and_step(digits):
  plain = transform(crop='none')
  one, two = (hold(digits, plain, seed=1) for _ in range(2))
  order = [one.indices(step) for step in range(31)]
  for step in (30, 3, 14, 0):  # in any order, also across epochs
    np.testing.assert_array_equal(two.indices(step), order[step])
  flat = np.concatenate(order)
  assert flat.dtype == np.int32
  assert sorted(flat[:1437]) == list(range(1437))
  assert sorted(flat[1437:2874]) == list(range(1437))
  assert not np.array_equal(flat[:1437], flat[1437:2874])
  other = hold(digits, plain, seed=2)
  assert not np.array_equal(other.indices(0), order[0])


def test_repeats(digits):
  crop = transform(crop='none')
  repeated = hold(digits, crop, seed=1, repeats=4)
  plain = hold(digits, crop, seed=1)
  index = np.concatenate([repeated.indices(s) for s in range(2)])
  np.testing.assert_array_equal(index[::4], plain.indices(0)[:50])
  assert (index.reshape(-1, 4) == index[::4, None]).all()
  spread = hold(digits, crop, seed=1, repeats=4, repeat_groups=5).indices(0)
  assert sorted(spread) == sorted(repeated.indices(0))
  for group in spread.reshape(5, 20):
    assert len(set(group)) == 20  # distinct images


def batches(source, transform, keys):
  """The batch of step 0 with each of the keys, as numpy, and its indices."""
  held = hold(source, transform, seed=1)
  indices = held.indices(0)
  make = jax.jit(lambda a, i, k: device_cache.cached_batch(a, i, k, transform))
  return [
    jax.device_get(make(held.arrays, indices, jax.random.key(key)))
    for key in keys
  ], indices


def batch(source, transform):
  (out,), indices = batches(source, transform, [0])
  return out, source.arrays(), indices


def test_plain_and_flipped_images(digits):
  out, (images, labels), index = batch(digits, transform(crop='none', flip=0.0))
  np.testing.assert_array_equal(out['image'], images[index])
  np.testing.assert_array_equal(out['label'], labels[index])
  np.testing.assert_array_equal(out['index'], index)
  out, _, _ = batch(digits, transform(crop='none', flip=1.0))
  np.testing.assert_array_equal(out['image'], images[index][:, :, ::-1])
  out, _, _ = batch(digits, transform(crop='none', flip=0.5))
  kept = (out['image'] == images[index]).all((1, 2, 3))
  assert 30 < kept.sum() < 70


def test_pad_crop(digits):
  out, (images, _), index = batch(
    digits, transform(crop='pad_crop', pad=2, flip=0.0)
  )
  shifts = set()
  for got, image in zip(out['image'], images[index]):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    offsets = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(padded[y : y + 8, x : x + 8], got)
    ]
    assert offsets
    shifts.update(offsets)
  assert len(shifts) > 20  # of 25, among 100 images


def test_squash_equals_opencv(digits):
  squash = transform((20, 13), crop='resize', flip=0.0)
  out, (images, _), index = batch(digits, squash)
  for got, image in zip(out['image'][:20], images[index]):
    want = cv2.resize(image.astype(np.float32), (13, 20))
    np.testing.assert_allclose(got, want, atol=2e-3)
  truncated, _, _ = batch(
    digits, transform((20, 13), crop='resize', flip=0.0, rounding='truncate')
  )
  np.testing.assert_array_equal(
    truncated['image'], np.floor(out['image'] + 1e-3)
  )


def test_inception_crops_equal_opencv_on_their_boxes():
  h, w, top, left = 9, 14, 5, 2
  image = (
    np.random.default_rng(0).uniform(0, 255, (24, 20, 3)).astype(np.float32)
  )
  rows = bilinear_matrix(24, 16, start=top, length=h, low=top, high=top + h - 1)
  columns = bilinear_matrix(
    20, 16, start=left, length=w, low=left, high=left + w - 1
  )
  got = jnp.einsum('ih,hwc,jw->ijc', rows, image, columns, precision='highest')
  want = cv2.resize(image[top : top + h, left : left + w], (16, 16))
  np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize('sampling', ['area', 'height'])
def test_inception_boxes_are_distributed_as_on_the_host(sampling):
  keys = jax.random.split(jax.random.key(0), 2000)
  crop = transform(crop_sampling=sampling, area=(0.08, 1.0))
  boxes = np.asarray(
    jax.jit(
      jax.vmap(lambda k: jnp.stack(device_crops.draw_box(k, 60, 80, crop)))
    )(keys)
  )
  rng = np.random.default_rng(0)
  host = np.array([crop.draw_box(rng, 60, 80) for _ in range(2000)])
  top, left, h, w = boxes.T
  assert (top >= 0).all() and (top + h <= 60).all()
  assert (left >= 0).all() and (left + w <= 80).all()
  assert (boxes == np.round(boxes)).all()
  for ours, theirs in zip(boxes.T, host.T, strict=True):
    np.testing.assert_allclose(ours.mean(), theirs.mean(), atol=1.2)
    np.testing.assert_allclose(ours.std(), theirs.std(), atol=1.2)


@pytest.mark.parametrize('sampling', ['area', 'height'])
def test_boxes_that_never_fit(sampling):
  """When no box fits, the device takes the same box as the host."""
  area, aspect = (1.0, 1.0), (3 / 4, 4 / 3)
  for height, width in ((10, 100), (100, 9)):
    box = device_crops.SAMPLERS[sampling](
      jax.random.key(0), height, width, area, aspect
    )
    rng = np.random.default_rng(0)
    assert tuple(map(int, box)) == crops.SAMPLERS[sampling](
      rng, height, width, area, aspect
    )


@pytest.mark.parametrize(
  'keys',
  [
    {'crop': 'inception', 'size': (24, 24)},
    {'crop': 'inception', 'size': (24, 24), 'crop_sampling': 'height'},
    {'crop': 'resize_crop', 'resize': 12, 'size': (10, 10)},
    {'crop': 'squash_crop', 'resize': 9, 'size': (7, 7)},
    {'crop': 'pad_crop', 'pad': 1, 'size': (12, 12)},
  ],
)
def test_crops_are_a_function_of_the_key(digits, keys):
  made, _ = batches(digits, transform(**keys), (0, 0, 1))
  a, b, c = (batch['image'] for batch in made)
  assert a.shape == (100, *keys['size'], 3)
  assert a.dtype == np.float32 and a.min() >= 0 and a.max() <= 255.001
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)


def test_resize_crop_is_a_cut_of_the_resized_image(digits):
  crop = transform((10, 10), crop='resize_crop', resize=12, flip=0.0)
  out, (images, _), index = batch(digits, crop)
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

    def arrays(self, decoding=DEFAULT_DECODING):
      return Source.arrays(self, decoding)

  out, (_, labels), index = batch(Multi(), transform(crop='none'))
  assert out['label'].shape == (100, 10)
  np.testing.assert_array_equal(out['label'], labels[index])
  assert (out['label'][:, 3] == 1).all()


def test_when_a_set_is_cached(digits):
  wants = device_cache.wants_cache
  assert wants(digits, transform(), 'auto') and wants(digits, transform(), 'on')
  assert not wants(digits, transform(), 'off')
  for fields, reason in (
    ({'randaugment': 'google(2,5)'}, 'randaugment'),
    ({'interpolation': 'bicubic'}, 'interpolation'),
    ({'color_jitter': 0.1}, 'color_jitter'),
    ({'crop': 'none', 'size': (9, 9)}, 'crop'),
  ):
    assert not wants(digits, transform(**fields), 'auto')
    with pytest.raises(ValueError, match=f'not possible: .*{reason}'):
      wants(digits, transform(**fields), 'on')
    with pytest.raises(ValueError, match=reason):
      hold(digits, transform(**fields), seed=0)
  with pytest.raises(ValueError, match='must be one of auto, on, off'):
    wants(digits, transform(), 'maybe')
  large = open_source(
    'synthetic', split='train', num_examples=1_000_000, image_size=(64, 64)
  )
  assert not wants(large, transform(), 'auto')
