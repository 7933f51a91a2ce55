"""Augmentation: properties, PyTorch as a peer, devices do not matter."""

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_one_hot_smoothing():
  y = augment.one_hot(jnp.array([1]), 4, 0.2)
  chex.assert_trees_all_close(
    y, jnp.array([[0.05, 0.85, 0.05, 0.05]]), atol=1e-6
  )


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
  # A constant image: what changed is the box.
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


@given(st.floats(0, 1), st.sampled_from(['timm', 'google']))
@settings(max_examples=20, deadline=None)
def test_apply_mixup(lam, style):
  x, y = floats(), targets()['label']
  mixed, labels = augment.apply_mixup(x, y, lam, style)
  partner = x[::-1] if style == 'timm' else jnp.roll(x, 1, 0)
  chex.assert_trees_all_close(mixed, lam * x + (1 - lam) * partner, atol=1e-6)
  chex.assert_trees_all_close(labels.sum(-1), jnp.ones(B), atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_random_box_and_cutmix(seed, lam):
  height, width = 12, 10
  box = augment.random_box(jax.random.key(seed), lam, height, width)
  top, bottom, left, right = (int(b) for b in box)
  assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
  side = np.sqrt(np.float32(1) - np.float32(lam))
  assert bottom - top <= height * side and right - left <= width * side
  x, y = floats(), targets()['label']
  mixed, labels = augment.apply_cutmix(x, y, box)
  area = (bottom - top) * (right - left)
  from_partner = np.zeros((height, width), bool)
  from_partner[top:bottom, left:right] = True
  chex.assert_trees_all_equal(mixed[:, from_partner], x[::-1][:, from_partner])
  chex.assert_trees_all_equal(mixed[:, ~from_partner], x[:, ~from_partner])
  chex.assert_trees_all_close(
    labels, y + area / (height * width) * (y[::-1] - y), atol=1e-6
  )


def test_per_example_parameters():
  x, y = floats(), targets()['label']
  lam = jnp.linspace(0, 1, B)
  mixed, labels = augment.apply_mixup(x, y, lam)
  one, one_label = augment.apply_mixup(x, y, lam[3])
  chex.assert_trees_all_equal(mixed[3], one[3])
  chex.assert_trees_all_equal(labels[3], one_label[3])
  box = jnp.stack([jnp.array([0, i, 0, i]) for i in range(B)])
  mixed, labels = augment.apply_cutmix(x, y, box)
  one, one_label = augment.apply_cutmix(x, y, box[3])
  chex.assert_trees_all_equal(mixed[3], one[3])
  chex.assert_trees_all_close(labels[3], one_label[3], atol=1e-6)


MIXES = [
  dict(mixup=0.8),
  dict(cutmix=1.0),
  dict(mixup=0.8, cutmix=1.0),
  dict(mixup=0.2, mix_style='google'),
  dict(mixup=0.8, cutmix=1.0, mix_prob=0.5, switch_prob=0.3),
]


@pytest.mark.parametrize('fields', MIXES, ids=str)
def test_mix_conserves_target_mass(fields):
  mix = jax.jit(lambda x, y, k: augment.mix(x, y, k, data(**fields)))
  x, y = floats(), targets()
  changed = 0
  for seed in range(12):
    mixed, out = mix(x, y, jax.random.key(seed))
    chex.assert_trees_all_close(out['label'].sum(-1), jnp.ones(B), atol=1e-5)
    chex.assert_trees_all_close(
      out['label'].sum(0), y['label'].sum(0), atol=1e-5
    )
    # Pixels stay with the pair they came from.
    chex.assert_trees_all_close(mixed.sum(0), x.sum(0), atol=1e-4)
    changed += bool(jnp.any(mixed != x))
  if 'mix_prob' in fields:
    assert 2 <= changed <= 10
  else:  # all but empty boxes
    assert changed >= 10


def test_mix_targets_weigh_the_pixels():
  # Each image is one constant: its mean is what the targets must weigh.
  values = jnp.arange(B, dtype=jnp.float32)
  x = jnp.broadcast_to(values[:, None, None, None], (B, 12, 10, 3))
  y = {'label': jnp.eye(B)}
  for fields in MIXES:
    for seed in range(4):
      mixed, out = augment.mix(x, y, jax.random.key(seed), data(**fields))
      chex.assert_trees_all_close(
        mixed.mean((1, 2, 3)), out['label'] @ values, atol=1e-4
      )


def test_google_lambda_is_at_least_half():
  lam = jax.vmap(lambda k: augment.mixup_lambda(k, 0.2, 'google'))(
    jax.random.split(jax.random.key(0), 200)
  )
  assert np.all(lam >= 0.5) and np.all(lam <= 1)
  lam = jax.vmap(lambda k: augment.mixup_lambda(k, 0.8))(
    jax.random.split(jax.random.key(0), 2000)
  )
  assert abs(float(lam.mean()) - 0.5) < 0.03
  # Var Beta(a, a) = 1 / (4 (2a + 1)).
  assert abs(float(lam.var()) - 1 / (4 * 2.6)) < 0.01


def test_mix_off_is_the_identity():
  x, y = floats(), targets()
  mixed, out = augment.mix(x, y, jax.random.key(0), data())
  assert mixed is x and out is y
  mixed, out = augment.mix(
    x, y, jax.random.key(0), data(mixup=0.8, cutmix=1.0, mix_prob=0.0)
  )
  chex.assert_trees_all_equal((mixed, out), (x, y))


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(mixup=0.1, mix_style='torch'), 'torch.*timm, google'),
    (dict(mixup=-1.0), 'data.mixup=-1.0'),
  ],
)
def test_mix_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    augment.mix(floats(), targets(), jax.random.key(0), data(**fields))


def test_token_labels_refuse_cutmix():
  y = dict(targets(), token_labels=jnp.ones((B, 4, C)))
  with pytest.raises(ValueError, match='data.cutmix'):
    augment.mix(floats(), y, jax.random.key(0), data(cutmix=1.0))


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
