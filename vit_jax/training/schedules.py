"""Learning-rate schedules from the recipe's section `schedule`.

A schedule is a function from a step to a rate. Steps count from 0: the first
update uses the rate of step 0. The curves are optax's. They get the fraction of
the run that has passed instead of a number of steps, because a warm-up in
epochs need not be a whole number of steps.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.training.durations import in_steps


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A function step -> learning rate (float32), and its peak."""

  fn: Callable[[jax.typing.ArrayLike], jax.Array]
  peak: float

  def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
    return self.fn(step)


@dataclasses.dataclass(frozen=True)
class Span:
  """Lengths of a run in steps; all but `total` may be fractional.

  Attributes:
    total: length of the run.
    warmup, cooldown: lengths of the warm-up and of the cooldown.
    decay: steps between two reductions of an exponential decay; 0 for none.
  """

  total: int
  warmup: float
  cooldown: float
  decay: float = 0.0

  def progress(self, step: jax.Array) -> jax.Array:
    """The fraction of the run after the warm-up that has passed, in [0, 1]."""
    passed = (step - self.warmup) / (self.total - self.warmup)
    # XLA may compute x / a as x * (1 / a), which can round a / a below 1.
    return jnp.where(step >= self.total, 1.0, jnp.clip(passed, 0, 1))


def _constant(cfg, peak: float, span: Span):
  return lambda step: jnp.full_like(step, optax.constant_schedule(peak)(step))


def _cosine(cfg, peak: float, span: Span):
  decay = optax.cosine_decay_schedule(peak - cfg.end, decay_steps=1)
  return lambda step: cfg.end + decay(span.progress(step))


def _linear(cfg, peak: float, span: Span):
  decay = optax.linear_schedule(peak, cfg.end, transition_steps=1)
  return lambda step: decay(span.progress(step))


def _polynomial(cfg, peak: float, span: Span):
  decay = optax.polynomial_schedule(
    peak, cfg.end, cfg.power, transition_steps=1
  )
  return lambda step: decay(span.progress(step))


def _rsqrt(cfg, peak: float, span: Span):
  """peak / sqrt(1 + (steps since the warm-up + shift) / timescale)."""
  if cfg.timescale <= 0:
    raise ValueError(f'schedule.timescale={cfg.timescale} must be positive')

  def rate(step):
    since = jnp.maximum(step - span.warmup, 0)
    return peak / jnp.sqrt(1 + (since + cfg.shift) / cfg.timescale)

  return rate


def _step(cfg, peak: float, span: Span):
  """A constant rate, with another factor of the peak after each boundary."""
  boundaries = _boundaries(cfg, span.total)
  factors = tuple(cfg.factors) or tuple(
    cfg.factor ** (i + 1) for i in range(len(boundaries))
  )
  if len(factors) != len(boundaries):
    raise ValueError(
      f'schedule.factors={factors} needs one entry for each of '
      f'schedule.boundaries={tuple(cfg.boundaries)}'
    )
  rates = np.float32(peak) * np.array([1, *factors], np.float32)
  return optax.join_schedules(
    [optax.constant_schedule(rate) for rate in rates], boundaries
  )


def _exponential(cfg, peak: float, span: Span):
  """The peak times `factor` after each `decay` steps, counted from step 0.

  The rate is constant in the steps between, and during the warm-up, as in the
  code of EfficientNet (tensorflow/tpu, efficientnet/utils.py).
  """

  def rate(step):
    # +0.5 so that float32 rounding cannot move a reduction by one step.
    reductions = jnp.floor((step + 0.5) / span.decay)
    reductions = jnp.where(step < span.warmup, 0, reductions)
    return peak * cfg.factor**reductions

  return rate


def _timm_cosine(cfg, peak: float, span: Span):
  """timm's CosineLRScheduler, which DeiT's family was trained with.

  Unlike 'cosine', the cosine begins at step 0 and not after the warm-up, unless
  `warmup_prefix` is set. The warm-up rises to the peak, so the rate then drops
  to the cosine, which is already below its peak. Restarts are as in
  arXiv:1608.03983; the exponent of the time is from arXiv:2004.05909. After the
  last cycle the rate stays at `end`.
  """
  slope = (peak - cfg.warmup_init) / (span.warmup or 1)
  start = span.warmup if cfg.warmup_prefix else 0.0
  relative = [cfg.cycle_mul**i for i in range(cfg.cycle_limit)]
  first = (span.total - span.cooldown - start) / sum(relative)
  cycles = []  # (first step, length, curve over the fraction of the cycle)
  for i, length in enumerate(first * r for r in relative):
    top = peak * cfg.cycle_decay**i
    curve = optax.cosine_decay_schedule(top - cfg.end, decay_steps=1)
    cycles.append((start, length, curve))
    start += length

  def rate(step):
    lr = jnp.full_like(step, cfg.end)
    for begin, length, curve in cycles:
      passed = jnp.clip((step - begin) / length, 0, 1) ** cfg.k_decay
      inside = (step >= begin) & (step < begin + length)
      lr = jnp.where(inside, cfg.end + curve(passed), lr)
    if span.warmup:
      lr = jnp.where(step < span.warmup, cfg.warmup_init + step * slope, lr)
    return lr

  return rate


CURVES = {
  'constant': _constant,
  'cosine': _cosine,
  'linear': _linear,
  'rsqrt': _rsqrt,
  'polynomial': _polynomial,
  'step': _step,
  'exponential': _exponential,
  'timm_cosine': _timm_cosine,
}
SCHEDULES = tuple(CURVES)


def _boundaries(cfg, total_steps: int) -> list[int]:
  """The steps at which the rate of a 'step' schedule changes."""
  boundaries = [
    round(b * total_steps) if 0 < b < 1 else b for b in cfg.boundaries
  ]
  if boundaries != sorted(boundaries) or any(b <= 0 for b in boundaries):
    raise ValueError(
      f'schedule.boundaries={tuple(cfg.boundaries)} must be '
      'positive and increasing: fractions of the run, or steps'
    )
  return boundaries


def _check(cfg, span: Span) -> None:
  """ValueError for a schedule section that cannot work."""
  if cfg.name not in CURVES:
    raise ValueError(
      f'schedule.name={cfg.name!r}; allowed: {", ".join(SCHEDULES)}'
    )
  for name, steps in (('warmup', span.warmup), ('cooldown', span.cooldown)):
    if steps < 0:
      raise ValueError(f'schedule: the {name} is negative: {steps:g} steps')
  if span.warmup + span.cooldown >= span.total:
    raise ValueError(
      f'schedule: {span.warmup:g} steps of warm-up and {span.cooldown:g} of '
      f'cooldown do not fit into a run of {span.total} steps: shorten them, or '
      'lengthen the run (run.steps, epochs or examples)'
    )
  if (cfg.name == 'step') != bool(cfg.boundaries):
    raise ValueError(
      "schedule.boundaries go with schedule.name='step', and "
      f'only with it: name={cfg.name!r}, '
      f'boundaries={tuple(cfg.boundaries)}'
    )
  if (cfg.name == 'exponential') != bool(span.decay):
    raise ValueError(
      "schedule.decay_epochs (or decay_steps) goes with schedule.name='"
      f"exponential', and only with it: name={cfg.name!r}, decay_epochs="
      f'{cfg.decay_epochs}, decay_steps={cfg.decay_steps}'
    )
  if cfg.cycle_limit < 1:
    raise ValueError(
      f'schedule.cycle_limit={cfg.cycle_limit}: must be at least 1'
    )


def _with_ends(curve, cfg, span: Span):
  """Adds the linear warm-up and cooldown of Google's code to a curve.

  The warm-up rises from `warmup_init` to the curve. The cooldown multiplies the
  curve by a factor that falls from 1 to 0.
  """

  def rate(step):
    lr = curve(step)
    if span.warmup:
      warm = cfg.warmup_init + (lr - cfg.warmup_init) * step / span.warmup
      lr = jnp.where(step < span.warmup, warm, lr)
    if span.cooldown:
      lr *= jnp.clip((span.total - step) / span.cooldown, 0, 1)
    return lr

  return rate


def _by_epoch(rate, epoch_lag: int, steps_per_epoch: float):
  """A rate that is constant within an epoch.

  Epoch e has the rate of the first step of epoch e - epoch_lag, at least that
  of step 0.
  """

  def held(step):
    # +0.5 so that float32 rounding cannot move the first step of an epoch into
    # the epoch before.
    epoch = jnp.floor((step + 0.5) / steps_per_epoch)
    return rate(jnp.maximum(epoch - epoch_lag, 0) * steps_per_epoch)

  return held


def make_schedule(
  cfg: Any,
  cfg_optim: Any,
  *,
  total_steps: int,
  steps_per_epoch: float,
  batch_size: int,
) -> Schedule:
  """The learning rate of a recipe as a function of the step.

  Args:
    cfg: the recipe's `schedule` section.
    cfg_optim: the recipe's `optim` section. The peak is `lr`, or lr *
      batch_size / lr_batch if `lr_batch` is set. `warmup_init` and `end` are
      not scaled.
    total_steps: length of the run in steps, with the cooldown.
    steps_per_epoch: optimizer steps of an epoch; may be fractional.
    batch_size: number of images in a global batch.

  Raises:
    ValueError: an unknown name, a warm-up and cooldown that do not fit into the
      run, or keys of another schedule.
  """
  peak = float(cfg_optim.lr)
  if cfg_optim.lr_batch:
    peak *= batch_size / cfg_optim.lr_batch
  length = functools.partial(
    in_steps, cfg, steps_per_epoch=steps_per_epoch, batch_size=batch_size
  )
  span = Span(
    total_steps,
    length('warmup_') or 0,
    length('cooldown_') or 0,
    length('decay_') or 0,
  )
  _check(cfg, span)
  rate = CURVES[cfg.name](cfg, peak, span)
  if cfg.name != 'timm_cosine':  # which has its own warm-up and end
    rate = _with_ends(rate, cfg, span)
  if cfg.by_epoch:
    rate = _by_epoch(rate, cfg.epoch_lag, steps_per_epoch)
  return Schedule(lambda step: rate(jnp.asarray(step, jnp.float32)), peak)
