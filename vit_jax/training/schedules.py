"""Learning-rate schedules as functions of the step."""

from collections.abc import Callable
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

# ---------------------------------------------------------------- schedules


@dataclasses.dataclass(frozen=True)
class Schedule:
  """step -> learning rate (float32), and the peak it was made for."""

  fn: Callable
  peak: float

  def __call__(self, step):
    return self.fn(step)


def learning_rate(
  step,
  *,
  name: str,
  peak: float,
  total_steps: int,
  warmup_steps: float = 0,
  warmup_init: float = 0.0,
  end: float = 0.0,
  power: float = 1.0,
  timescale: float = 10_000,
  cooldown_steps: float = 0,
  boundaries=(),
  multipliers=(),
):
  """The learning rate of big_vision's and vit_jax's schedules.

  Linear warm-up from `warmup_init`, then a curve over the rest of the run,
  then, with `cooldown_steps`, a factor that falls linearly to 0 at the end.

  Args:
    step: int, scalar or array; traced or not.
    name: 'constant'; 'cosine', 'linear', 'polynomial' (from peak to `end`);
      'rsqrt' (peak / sqrt(1 + steps since warm-up / timescale)); 'step' (peak *
      multipliers[i] from step boundaries[i] on).
    peak: learning rate after the warm-up.
    total_steps: length of the run.
    warmup_steps, warmup_init: length and first value of the warm-up.
    end: last value.
    power: of 'polynomial'.
    timescale: of 'rsqrt', in steps.
    cooldown_steps: length of the cooldown.
    boundaries, multipliers: of 'step', in steps and as factors of the peak.

  Returns:
    float32, the shape of `step`.
  """
  step = jnp.asarray(step, jnp.float32)
  progress = jnp.clip(
    (step - warmup_steps) / (total_steps - warmup_steps), 0, 1
  )
  if name == 'constant':
    lr = jnp.full_like(step, peak)
  elif name == 'cosine':
    lr = end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
  elif name in ('linear', 'polynomial'):
    lr = end + (peak - end) * (1 - progress) ** (
      power if name == 'polynomial' else 1
    )
  elif name == 'rsqrt':
    lr = peak / jnp.sqrt(1 + jnp.maximum(step - warmup_steps, 0) / timescale)
  elif name == 'step':
    factors = np.array([1.0, *multipliers], np.float32) * np.float32(peak)
    passed = jnp.searchsorted(np.array(boundaries, np.float32), step, 'right')
    lr = jnp.asarray(factors)[passed]
  else:
    raise ValueError(f'schedule.name={name!r}; allowed: {", ".join(SCHEDULES)}')
  if warmup_steps:
    warm = warmup_init + (lr - warmup_init) * step / warmup_steps
    lr = jnp.where(step < warmup_steps, warm, lr)
  if cooldown_steps:
    lr *= jnp.clip((total_steps - step) / cooldown_steps, 0, 1)
  return lr


def timm_cosine(
  t,
  *,
  peak: float,
  period: float,
  end: float = 0.0,
  warmup: float = 0,
  warmup_init: float = 0.0,
  warmup_prefix: bool = False,
  cycle_mul: float = 1.0,
  cycle_decay: float = 1.0,
  cycle_limit: int = 1,
  k_decay: float = 1.0,
):
  """timm's CosineLRScheduler, which DeiT's family was trained with.

  Unlike 'cosine', the warm-up is not subtracted from t (unless
  `warmup_prefix`), so the curve starts below its peak; after the last cycle
  the rate stays at `end`.

  Args:
    t: index, in any unit (epochs, steps), scalar or array.
    peak: rate at the start of the first cycle.
    period: length of the first cycle, in units of t.
    end: rate at the end of every cycle.
    warmup, warmup_init: length and first value of the linear warm-up.
    warmup_prefix: count t from the end of the warm-up.
    cycle_mul, cycle_decay, cycle_limit: each cycle is so much longer and
      its peak so much lower than the one before; number of cycles
      (arXiv:1608.03983).
    k_decay: exponent of the time within a cycle (arXiv:2004.05909).

  Returns:
    float32, the shape of t.
  """
  t = jnp.asarray(t, jnp.float32)
  x = t - warmup if warmup_prefix else t
  lengths = period * np.power(float(cycle_mul), np.arange(cycle_limit))
  lr = jnp.full_like(t, end)
  start = 0.0
  for i, length in enumerate(lengths):
    top = peak * cycle_decay**i
    part = jnp.clip((x - start) / length, 0, 1) ** k_decay
    curve = end + (top - end) * 0.5 * (1 + jnp.cos(jnp.pi * part))
    lr = jnp.where((x >= start) & (x < start + length), curve, lr)
    start += length
  if warmup:
    lr = jnp.where(
      t < warmup, warmup_init + t * ((peak - warmup_init) / warmup), lr
    )
  return lr


SCHEDULES = (
  'constant',
  'cosine',
  'linear',
  'rsqrt',
  'polynomial',
  'step',
  'timm_cosine',
)


def _duration(cfg, name, steps_per_epoch, batch_size) -> float:
  """Steps of cfg.{name}_steps, _epochs or _examples; at most one is set."""
  units = {'steps': 1, 'epochs': steps_per_epoch, 'examples': 1 / batch_size}
  given = {u: cfg.get(f'{name}_{u}') for u in units}
  given = {u: value for u, value in given.items() if value}
  if len(given) > 1:
    raise ValueError(
      'schedule: '
      + ' and '.join(f'{name}_{u}' for u in given)
      + ' are both set; give at most one of them'
    )
  for unit, value in given.items():
    if value < 0:
      raise ValueError(f'schedule.{name}_{unit}={value} is negative')
    return value * units[unit]
  return 0


def make_schedule(
  cfg_schedule,
  cfg_optim,
  *,
  total_steps: int,
  steps_per_epoch: float,
  batch_size: int,
) -> Schedule:
  """The learning rate of a recipe as a function of the step.

  Args:
    cfg_schedule: the recipe's `schedule` section.
    cfg_optim: its `optim` section: `lr` and `lr_batch` (the batch size `lr`
      is meant for; the peak is lr * batch_size / lr_batch). `warmup_init` and
      `end` are not scaled.
    total_steps: length of the run, cooldown included.
    steps_per_epoch: may be fractional.
    batch_size: global.
  """
  cfg = cfg_schedule
  if cfg.name not in SCHEDULES:
    raise ValueError(
      f'schedule.name={cfg.name!r}; allowed: {", ".join(SCHEDULES)}'
    )
  peak = float(cfg_optim.lr)
  if cfg_optim.lr_batch:
    peak *= batch_size / cfg_optim.lr_batch
  warmup = _duration(cfg, 'warmup', steps_per_epoch, batch_size)
  cooldown = _duration(cfg, 'cooldown', steps_per_epoch, batch_size)
  if warmup + cooldown >= total_steps:
    raise ValueError(
      f'schedule: {warmup:g} steps of warm-up and {cooldown:g} of cooldown '
      f'do not fit into a run of {total_steps} steps: shorten them, or '
      'lengthen the run (run.steps, epochs or examples)'
    )
  if cfg.name == 'timm_cosine':
    curve = functools.partial(
      timm_cosine,
      peak=peak,
      period=total_steps - cooldown,
      end=cfg.end,
      warmup=warmup,
      warmup_init=cfg.warmup_init,
    )
    if not cfg.by_epoch:
      return Schedule(curve, peak)

    def by_epoch(step):
      # The half keeps the division of whole numbers on the right side.
      epoch = jnp.floor(
        (jnp.asarray(step, jnp.float32) + 0.5) / steps_per_epoch
      )
      return curve(jnp.maximum(epoch - cfg.epoch_lag, 0) * steps_per_epoch)

    return Schedule(by_epoch, peak)
  if cfg.by_epoch:
    raise ValueError(
      'schedule.by_epoch is only for schedule.name='
      f"'timm_cosine', not {cfg.name!r}"
    )
  boundaries = [
    round(b * total_steps) if 0 < b < 1 else b for b in cfg.boundaries
  ]
  if boundaries != sorted(boundaries) or any(b <= 0 for b in boundaries):
    raise ValueError(
      f'schedule.boundaries={tuple(cfg.boundaries)} must be '
      'positive and increasing: fractions of the run, or steps'
    )
  if (cfg.name == 'step') != bool(boundaries):
    raise ValueError(
      "schedule.boundaries go with schedule.name='step', and "
      f'only with it: name={cfg.name!r}, '
      f'boundaries={tuple(cfg.boundaries)}'
    )
  fn = functools.partial(
    learning_rate,
    name=cfg.name,
    peak=peak,
    total_steps=total_steps,
    warmup_steps=warmup,
    warmup_init=cfg.warmup_init,
    end=cfg.end,
    power=cfg.power,
    timescale=cfg.timescale,
    cooldown_steps=cooldown,
    boundaries=boundaries,
    multipliers=[cfg.factor ** (i + 1) for i in range(len(boundaries))],
  )
  return Schedule(fn, peak)
