"""Schedules against closed forms."""

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.recipe.finetuning import hyperrule
from vit_jax.recipe.keys import default_config
from vit_jax.training.schedules import SCHEDULES, make_schedule


def schedule(
  total=100, steps_per_epoch=10, batch_size=128, optim_fields=(), **fields
):
  c = default_config()
  c.optim.update({'lr': 0.5, **dict(optim_fields)})
  c.schedule.update(fields)
  return make_schedule(
    c.schedule,
    c.optim,
    total_steps=total,
    steps_per_epoch=steps_per_epoch,
    batch_size=batch_size,
  )


@pytest.mark.parametrize(
  'name, fields, end',
  [
    ('cosine', {}, 0.0),
    ('cosine', {'end': 0.1}, 0.1),
    ('linear', {}, 0.0),
    ('linear', {'end': 0.01}, 0.01),
    ('polynomial', {'power': 2.0}, 0.0),
    ('constant', {}, 0.5),
    ('rsqrt', {'cooldown_steps': 20}, 0.0),
    ('constant', {'cooldown_epochs': 1.5}, 0.0),
  ],
)
def test_schedule_end_points(name, fields, end):
  fn = schedule(name=name, warmup_steps=10, **fields)
  assert fn.peak == 0.5
  np.testing.assert_allclose(
    fn(jnp.array([0, 5, 10, 100])), [0, 0.25, 0.5, end], atol=1e-6
  )
  lr = np.asarray(jax.jit(jax.vmap(fn))(jnp.arange(101)))
  assert np.all(np.diff(lr[10:]) <= 1e-7) and np.all(lr >= 0)


@given(
  st.sampled_from(['cosine', 'linear', 'polynomial', 'timm_cosine']),
  st.integers(0, 40),
  st.floats(0, 0.1),
  st.floats(0.5, 3),
)
@settings(max_examples=30, deadline=None)
def test_schedules_stay_within_their_ends(name, warmup, end, power):
  fn = schedule(name=name, warmup_steps=warmup, end=end, power=power)
  lr = np.asarray(fn(jnp.arange(120)))
  assert lr.dtype == np.float32
  assert np.all(lr <= 0.5 + 1e-6)
  assert np.all(lr[max(warmup, 1) :] >= end - 1e-6)
  np.testing.assert_allclose(lr[100:], end, atol=1e-6)


def test_curves_at_the_middle():
  at = lambda **fields: float(schedule(**fields)(55))
  warm = dict(warmup_steps=10)
  assert at(name='cosine', **warm) == pytest.approx(0.25)
  assert at(name='linear', **warm) == pytest.approx(0.25)
  assert at(name='polynomial', power=2.0, **warm) == pytest.approx(0.125)
  assert at(name='rsqrt', timescale=15, **warm) == pytest.approx(0.25)
  # Step 55 of 100: the warm-up is not subtracted from the time of the cosine.
  assert at(name='timm_cosine', **warm) == pytest.approx(
    0.25 * (1 + np.cos(np.pi * 0.55))
  )


def test_step_schedule():
  fn = schedule(name='step', boundaries=(30, 60))
  np.testing.assert_allclose(
    fn(jnp.array([0, 29, 30, 59, 60, 99])),
    [0.5, 0.5, 0.05, 0.05, 0.005, 0.005],
    rtol=1e-6,
  )
  by_fraction = schedule(name='step', boundaries=(0.3, 0.6))
  steps = jnp.arange(100)
  chex.assert_trees_all_equal(by_fraction(steps), fn(steps))


def test_durations_agree():
  steps = jnp.arange(100)
  expected = schedule(name='cosine', warmup_steps=15)(steps)
  for fields in (dict(warmup_epochs=1.5), dict(warmup_examples=15 * 128)):
    chex.assert_trees_all_close(
      schedule(name='cosine', **fields)(steps), expected, rtol=1e-6
    )


def test_lr_is_scaled_with_the_batch():
  fn = schedule(
    batch_size=1024,
    optim_fields={'lr': 5e-4, 'lr_batch': 512},
    name='cosine',
    warmup_steps=10,
    warmup_init=1e-6,
  )
  assert fn.peak == pytest.approx(1e-3)
  assert float(fn(0)) == pytest.approx(1e-6)
  assert float(fn(10)) == pytest.approx(1e-3)


def test_timm_cosine_by_epoch_as_executed():
  """DeiT: epochs 0 and 1 have the first rate, epoch e that of epoch e - 1."""
  epochs, spe, lr, end, start = 30, 7, 1e-3, 1e-5, 1e-6
  fields = dict(
    total=epochs * spe,
    steps_per_epoch=spe,
    optim_fields={'lr': lr},
    name='timm_cosine',
    warmup_epochs=5.0,
    warmup_init=start,
    end=end,
    by_epoch=True,
  )

  def at(t):
    if t < 5:
      return start + t * (lr - start) / 5
    return end + 0.5 * (lr - end) * (1 + np.cos(np.pi * t / epochs))

  steps = jnp.arange(epochs * spe)
  deit = np.repeat([at(max(0, e - 1)) for e in range(epochs)], spe)
  volo = np.repeat([at(e) for e in range(epochs)], spe)
  np.testing.assert_allclose(
    jax.jit(schedule(**fields).fn)(steps), deit, rtol=2e-5
  )
  np.testing.assert_allclose(
    schedule(**fields, epoch_lag=0)(steps), volo, rtol=2e-5
  )
  # A cooldown adds epochs at the end rate and does not change the curve before.
  longer = schedule(
    **{**fields, 'total': (epochs + 10) * spe},
    epoch_lag=0,
    cooldown_epochs=10.0,
  )(jnp.arange((epochs + 10) * spe))
  np.testing.assert_allclose(longer[: epochs * spe], volo, rtol=2e-5)
  np.testing.assert_allclose(longer[epochs * spe :], end, rtol=1e-5)


def test_by_epoch_holds_at_large_steps():
  fn = schedule(
    total=300 * 1251,
    steps_per_epoch=1251,
    name='timm_cosine',
    by_epoch=True,
    epoch_lag=0,
  )
  for epoch in (1, 150, 299):
    first = float(fn(epoch * 1251))
    assert first == float(fn((epoch + 1) * 1251 - 1))
    assert first < float(fn(epoch * 1251 - 1))


def test_hyperrule():
  small = hyperrule(1_000, 32, 32)
  assert (small.resize, small.crop, small.steps) == (160, 128, 500)
  assert small.mixup == 0
  large = hyperrule(1_281_167, 500, 375)
  assert (large.resize, large.crop, large.steps) == (512, 480, 20_000)
  assert large.mixup == 0.1 and large.boundaries == (6_001, 12_001, 18_001)


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(name='cosin'), 'cosin.*timm_cosine'),
    (dict(warmup_steps=5, warmup_epochs=1.0), 'warmup_steps and warmup_epochs'),
    (dict(warmup_epochs=-1.0), 'negative'),
    (dict(warmup_steps=100), '100 steps of warm-up.*run of 100 steps'),
    (dict(name='step'), 'boundaries'),
    (dict(name='step', boundaries=(60, 30)), 'increasing'),
    (dict(boundaries=(60,)), "name='step'"),
    (dict(name='timm_cosine', cycle_limit=0), 'cycle_limit'),
    (dict(name='rsqrt', timescale=0), 'timescale'),
    (
      dict(name='step', boundaries=(9,), factors=(0.5, 0.1)),
      'one entry for each',
    ),
  ],
)
def test_schedule_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    schedule(**fields)


def test_every_schedule_keeps_the_shape_and_works_traced():
  for name in SCHEDULES:
    fields = {'step': {'boundaries': (0.5,)}, 'exponential': {'decay_steps': 5}}
    fn = schedule(name=name, warmup_epochs=0.35, **fields.get(name, {}))
    steps = jnp.arange(12).reshape(3, 4)
    lr = jax.jit(fn.fn)(steps)
    assert lr.shape == (3, 4) and lr.dtype == jnp.float32
    np.testing.assert_allclose(lr[1, 2], fn(6), rtol=1e-6)
    assert np.shape(fn(0)) == ()


def test_rsqrt_with_a_shift():
  """The curve goes as if it had begun earlier, without a jump."""
  fn = schedule(name='rsqrt', warmup_steps=10, timescale=20, shift=60)
  first = 0.5 / np.sqrt(1 + 60 / 20)
  np.testing.assert_allclose(
    fn(jnp.array([0, 5, 10, 50])),
    [0, first / 2, first, 0.5 / np.sqrt(1 + 100 / 20)],
    rtol=1e-6,
  )


def test_step_schedule_with_given_factors():
  fn = schedule(name='step', boundaries=(30, 60), factors=(0.5, 0.2))
  np.testing.assert_allclose(
    fn(jnp.array([29, 30, 60])), [0.5, 0.25, 0.1], rtol=1e-6
  )


def test_exponential_as_in_the_code_of_efficientnet():
  """Constant between reductions, which are counted from step 0."""
  c = default_config()
  c.schedule.update(
    name='exponential', factor=0.97, decay_epochs=2.4, warmup_epochs=5.0
  )
  c.optim.update(lr=0.016, lr_batch=256)
  rate = make_schedule(
    c.schedule, c.optim, total_steps=350_000, steps_per_epoch=1000,
    batch_size=2048,
  )  # fmt: skip
  assert rate(0) == 0 and rate(2500) == pytest.approx(0.064)
  assert rate(5000) == pytest.approx(0.128 * 0.97**2)
  assert rate(7199) == rate(5000)
  assert rate(7200) == pytest.approx(0.128 * 0.97**3)
  assert rate(349_999) == pytest.approx(0.128 * 0.97**145, rel=1e-4)


def test_cosine_with_restarts():
  fn = schedule(
    name='timm_cosine',
    total=80,
    warmup_steps=10,
    warmup_init=0.1,
    warmup_prefix=True,
    cycle_limit=3,
    cycle_mul=2.0,
    cycle_decay=0.5,
  )
  # Cycles of 10, 20 and 40 steps after the warm-up, each at half the peak.
  np.testing.assert_allclose(
    fn(jnp.array([0, 5, 10, 15, 20, 30, 40, 60, 80])),
    [0.1, 0.3, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0],
    atol=1e-7,
  )


def test_step_by_epoch_as_timms_loop():
  """timm's StepLRScheduler, set after each epoch: rate of the epoch before."""
  fields = dict(
    name='step',
    boundaries=(30, 60),
    by_epoch=True,
    warmup_epochs=2.0,
    warmup_init=0.1,
  )
  rates = [0.1, 0.1, 0.3, 0.5, 0.05, 0.05, 0.05, 0.005]
  steps = np.arange(8) * 10 + 9  # the last step of each epoch
  np.testing.assert_allclose(schedule(**fields)(steps), rates, rtol=1e-5)
  np.testing.assert_allclose(
    schedule(**fields, epoch_lag=0)(steps[:-1]), rates[1:], rtol=1e-5
  )
