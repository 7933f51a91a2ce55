"""Augmentation: properties, agreement with PyTorch and across devices."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vit_jax.recipe.keys import default_config
from vit_jax.training import augment

B, C = 8, 5


def images(seed=0, height=12, width=10, batch=B):
  return np.random.default_rng(seed).integers(
    0, 256, (batch, height, width, 3), np.uint8
  )


def floats(seed=0, **shape):
  return augment.normalize(images(seed, **shape))


def targets():
  return {'label': augment.one_hot(jnp.arange(B) % C, C)}


def data(**fields):
  c = default_config().data
  c.update(fields)
  return c


def test_normalize():
  x = jnp.array([[[[0, 255, 127]]]], jnp.uint8)
  chex.assert_trees_all_close(
    augment.normalize(x), jnp.array([[[[-1, 1, -1 / 255]]]]), atol=1e-6
  )
  chex.assert_trees_all_close(
    augment.normalize(x, 'imagenet')[0, 0, 0],
    jnp.array(
      [-0.485 / 0.229, (1 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    ),
    atol=1e-5,
  )
  assert augment.normalize(x, dtype=jnp.bfloat16).dtype == jnp.bfloat16
  with pytest.raises(ValueError, match='zero-one.*half, imagenet'):
    augment.normalize(x, 'zero-one')


@pytest.mark.parametrize('size', [(7, 23), (12, 10), (30, 5), (1, 1)])
def test_resize_equals_torch(size):
  torch = pytest.importorskip('torch')
  x = images()
  expected = torch.nn.functional.interpolate(
    torch.tensor(x).permute(0, 3, 1, 2).float(),
    size,
    mode='bilinear',
    align_corners=False,
  ).permute(0, 2, 3, 1)
  np.testing.assert_allclose(augment.resize(x, size), expected, atol=1e-3)


def test_resize_keeps_constants_and_takes_int():
  x = np.full((1, 9, 9, 3), 77, np.uint8)
  chex.assert_trees_all_close(
    augment.resize(x, 20), jnp.full((1, 20, 20, 3), 77.0), atol=1e-4
  )


@pytest.mark.parametrize('prob', [0.0, 0.25, 1.0])
def test_random_erasing(prob):
  # The image is constant, so the pixels that changed are the box.
  x = jnp.full((400, 16, 24, 3), 100.0)
  erase = jax.jit(lambda x, key: augment.random_erasing(x, key, prob))
  y = erase(x, jax.random.key(0))
  changed = np.asarray(jnp.any(y != x, axis=-1))
  erased = changed.any(axis=(1, 2))
  assert abs(erased.mean() - prob) < 0.07
  for box in changed[erased]:
    rows, columns = box.any(axis=1), box.any(axis=0)
    h, w = rows.sum(), columns.sum()
    assert box.sum() == h * w  # one full rectangle
    # Sides are rounded, so area and aspect hold up to half a pixel.
    assert (h - 0.5) * (w - 0.5) <= 16 * 24 / 3
    assert (h + 0.5) * (w + 0.5) >= 16 * 24 * 0.02
    assert 0.3 * (w - 0.5) <= h + 0.5 and 0.3 * (h - 0.5) <= w + 0.5
    assert h < 16 and w < 24
  if prob == 1:
    noise = np.asarray(y)[changed]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    # Boxes reach all four borders.
    for edge in (
      changed[:, 0],
      changed[:, -1],
      changed[:, :, 0],
      changed[:, :, -1],
    ):
      assert edge.any()


def test_prepare_train_does_not_depend_on_the_devices():
  c = data(mixup=0.8, cutmix=1.0, erasing=0.5, image_size=16, device_resize=12)
  fn = jax.jit(lambda x, y, k: augment.prepare_train(x, y, k, c))
  x, y = images(height=12, width=12), targets()
  mesh = jax.make_mesh((8,), ('data',))
  for seed in range(4):
    key = jax.random.key(seed)
    expected = fn(x, y, key)
    assert expected[0].shape == (B, 16, 16, 3)
    put = lambda a: jax.device_put(a, NamedSharding(mesh, P('data')))
    chex.assert_trees_all_close(
      fn(put(x), jax.tree.map(put, y), key), expected, atol=1e-6
    )


def test_prepare_eval_and_dtype():
  x = images(height=12, width=12)
  plain = augment.prepare_eval(x, data(image_size=12))
  chex.assert_trees_all_equal(plain, augment.normalize(x))
  c = data(device_resize=12, flip=0.0, image_size=6, image_width=9)
  y = augment.prepare_eval(x, c)
  assert y.shape == (B, 6, 9, 3)
  z, _ = augment.prepare_train(x, targets(), jax.random.key(0), c, jnp.bfloat16)
  assert z.dtype == jnp.bfloat16
  chex.assert_trees_all_equal(z, y.astype(jnp.bfloat16))
