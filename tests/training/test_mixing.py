"""Mixup and CutMix: properties of the random numbers and of mixed images."""

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.recipe.keys import default_config
from vit_jax.training import augment, mixing

B, C = 8, 5


def floats():
  return augment.normalize(
    np.random.default_rng(0).integers(0, 256, (B, 12, 10, 3), np.uint8)
  )


def targets():
  return {'label': augment.one_hot(jnp.arange(B) % C, C)}


def data(**fields):
  c = default_config().data
  c.update(fields)
  return c


def drawn(lam, box=(0, 0, 0, 0), cut=False):
  """The same draw for every example."""
  return mixing.Mixing(
    jnp.full(B, lam, jnp.float32),
    jnp.broadcast_to(jnp.asarray(box), (B, 4)),
    jnp.full(B, cut),
  )


@given(st.floats(0, 1), st.sampled_from(['timm', 'google']))
@settings(max_examples=20, deadline=None)
def test_apply_mixup(lam, style):
  x, y = floats(), targets()['label']
  mixed, labels = mixing.apply_mixing(x, y, drawn(lam), style)
  partner = x[::-1] if style == 'timm' else jnp.roll(x, 1, 0)
  chex.assert_trees_all_close(mixed, lam * x + (1 - lam) * partner, atol=1e-6)
  chex.assert_trees_all_close(labels.sum(-1), jnp.ones(B), atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_random_box_and_cutmix(seed, lam):
  height, width = 12, 10
  box = mixing.random_box(jax.random.key(seed), lam, height, width)
  top, bottom, left, right = (int(b) for b in box)
  assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
  side = np.sqrt(np.float32(1) - np.float32(lam))
  assert bottom - top <= height * side and right - left <= width * side
  x, y = floats(), targets()['label']
  inside = mixing.box_lambda(box, height, width)
  mixed, labels = mixing.apply_mixing(x, y, drawn(inside, box, True))
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
  box = jnp.stack([jnp.array([0, i, 0, i]) for i in range(B)])
  cut = jnp.arange(B) % 2 == 1
  mixed, labels = mixing.apply_mixing(x, y, mixing.Mixing(lam, box, cut))
  for i in (3, 4):
    one, one_label = mixing.apply_mixing(x, y, drawn(lam[i], box[i], cut[i]))
    chex.assert_trees_all_equal(mixed[i], one[i])
    chex.assert_trees_all_equal(labels[i], one_label[i])


def test_groups_have_coefficients_and_partners_of_their_own():
  """Four groups are mixed like the batches of four processes."""
  x, y = floats(), targets()['label']
  c = data(mixup=0.8, cutmix=1.0, mix_groups=4)
  draws = mixing.draw_mixing(jax.random.key(3), c, x.shape)
  mixed, labels = mixing.apply_mixing(x, y, draws, 'timm', 4)
  lam = np.asarray(draws.lam)
  assert len(set(lam.tolist())) == 4
  np.testing.assert_array_equal(lam[::2], lam[1::2])
  for group in range(4):
    own = [2 * group, 2 * group + 1]
    alone, alone_label = mixing.apply_mixing(
      x[np.array(own)],
      y[np.array(own)],
      jax.tree.map(lambda v, own=own: v[np.array(own)], draws),
    )
    chex.assert_trees_all_close(mixed[np.array(own)], alone, atol=1e-6)
    chex.assert_trees_all_close(labels[np.array(own)], alone_label, atol=1e-6)
  with pytest.raises(ValueError, match='mix_groups=3.*batch of 8'):
    mixing.mix(x, targets(), jax.random.key(0), data(mixup=1.0, mix_groups=3))


@pytest.mark.parametrize('groups', [1, 2])
def test_who_shares_a_coefficient(groups):
  """timm's modes: the batch, an image and its partner, or nobody."""
  fields = dict(mixup=0.8, cutmix=1.0, mix_groups=groups)
  draws = {
    mode: mixing.draw_mixing(
      jax.random.key(3), data(**fields, mix_mode=mode), floats().shape
    )
    for mode in mixing.MODES
  }
  for mode, different in (
    ('batch', 1),
    ('pair', 4 // groups),
    ('elem', B // groups),
  ):
    lam, box, cut = (
      np.asarray(x).reshape(groups, B // groups, -1) for x in draws[mode][:3]
    )
    assert [len(np.unique(x)) for x in lam] == [different] * groups
    if mode != 'elem':
      for x in (lam, box, cut):
        np.testing.assert_array_equal(x, x[:, ::-1])


def test_permuted_partners_stay_within_their_slice():
  c = data(mixup=0.5, mix_style='permute')
  seen = set()
  for seed in range(20):
    draws = mixing.draw_mixing(jax.random.key(seed), c, (B, 4, 4, 3), 2)
    partner = np.asarray(draws.partner)
    assert sorted(partner) == list(range(B))
    np.testing.assert_array_equal(partner % 2, np.arange(B) % 2)
    seen.add(tuple(partner))
  assert len(seen) > 15
  x, y = floats(), targets()['label']
  mixed, labels = mixing.apply_mixing(x, y, draws, 'permute')
  lam = draws.lam[0]
  chex.assert_trees_all_close(
    mixed, lam * x + (1 - lam) * x[partner], atol=1e-6
  )
  chex.assert_trees_all_close(
    labels, lam * y + (1 - lam) * y[partner], atol=1e-6
  )


MIXES = [
  dict(mixup=0.8),
  dict(cutmix=1.0),
  dict(mixup=0.8, cutmix=1.0),
  dict(mixup=0.2, mix_style='google'),
  dict(mixup=0.8, cutmix=1.0, mix_prob=0.5, switch_prob=0.3),
  dict(mixup=0.8, cutmix=1.0, mix_groups=2),
  dict(mixup=0.5, mix_style='permute'),
]


@pytest.mark.parametrize('fields', MIXES, ids=str)
def test_mix_conserves_target_mass(fields):
  mix = jax.jit(lambda x, y, k: mixing.mix(x, y, k, data(**fields)))
  x, y = floats(), targets()
  changed = 0
  for seed in range(12):
    mixed, out = mix(x, y, jax.random.key(seed))
    chex.assert_trees_all_close(out['label'].sum(-1), jnp.ones(B), atol=1e-5)
    chex.assert_trees_all_close(
      out['label'].sum(0), y['label'].sum(0), atol=1e-5
    )
    # Mixing within pairs keeps the sum of a pair's pixels.
    chex.assert_trees_all_close(mixed.sum(0), x.sum(0), atol=1e-4)
    changed += bool(jnp.any(mixed != x))
  if 'mix_prob' in fields:
    assert 2 <= changed <= 10
  else:  # all but empty boxes
    assert changed >= 10


def test_mix_targets_weigh_the_pixels():
  # Images are constant, so their mean shows the weights that targets must have.
  values = jnp.arange(B, dtype=jnp.float32)
  x = jnp.broadcast_to(values[:, None, None, None], (B, 12, 10, 3))
  y = {'label': jnp.eye(B)}
  for fields in MIXES:
    for seed in range(4):
      mixed, out = mixing.mix(x, y, jax.random.key(seed), data(**fields))
      chex.assert_trees_all_close(
        mixed.mean((1, 2, 3)), out['label'] @ values, atol=1e-4
      )


def test_google_lambda_is_at_least_half():
  lam = jax.vmap(lambda k: mixing.mixup_lambda(k, 0.2, 'google'))(
    jax.random.split(jax.random.key(0), 200)
  )
  assert np.all(lam >= 0.5) and np.all(lam <= 1)
  lam = jax.vmap(lambda k: mixing.mixup_lambda(k, 0.8))(
    jax.random.split(jax.random.key(0), 2000)
  )
  assert abs(float(lam.mean()) - 0.5) < 0.03
  # Var Beta(a, a) = 1 / (4 (2a + 1)).
  assert abs(float(lam.var()) - 1 / (4 * 2.6)) < 0.01


def test_mix_off_is_the_identity():
  x, y = floats(), targets()
  mixed, out = mixing.mix(x, y, jax.random.key(0), data())
  assert mixed is x and out is y
  mixed, out = mixing.mix(
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
    mixing.mix(floats(), targets(), jax.random.key(0), data(**fields))


def test_token_labels_refuse_cutmix():
  y = dict(targets(), token_labels=jnp.ones((B, 4, C)))
  with pytest.raises(ValueError, match='data.cutmix'):
    mixing.mix(floats(), y, jax.random.key(0), data(cutmix=1.0))
