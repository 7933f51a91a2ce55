"""Learning-rate schedules and optimizers, as optax transformations.

`make_schedule` and `make_optimizer` read the recipe's `schedule` and `optim`
sections. Moments have the tree (and, Adafactor apart, the shapes) of the
parameters, so that the path of a state's leaf ends with its parameter's path.
Parameter paths are written 'Transformer/encoderblock_0/MlpBlock_0/...'.
"""

from collections.abc import Callable
import dataclasses
import difflib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

# ---------------------------------------------------------------- schedules


@dataclasses.dataclass(frozen=True)
class Schedule:
  """step -> learning rate (float32), and the peak it was made for."""

  fn: Callable
  peak: float

  def __call__(self, step):
    return self.fn(step)


def learning_rate(step, *, name: str, peak: float, total_steps: int,
                  warmup_steps: float = 0, warmup_init: float = 0.0,
                  end: float = 0.0, power: float = 1.0,
                  timescale: float = 10_000, cooldown_steps: float = 0,
                  boundaries=(), multipliers=()):
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
  progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0,
                      1)
  if name == 'constant':
    lr = jnp.full_like(step, peak)
  elif name == 'cosine':
    lr = end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
  elif name in ('linear', 'polynomial'):
    lr = end + (peak - end) * (1 - progress) ** (
        power if name == 'polynomial' else 1)
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


def timm_cosine(t, *, peak: float, period: float, end: float = 0.0,
                warmup: float = 0, warmup_init: float = 0.0,
                warmup_prefix: bool = False, cycle_mul: float = 1.0,
                cycle_decay: float = 1.0, cycle_limit: int = 1,
                k_decay: float = 1.0):
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
    top = peak * cycle_decay ** i
    part = jnp.clip((x - start) / length, 0, 1) ** k_decay
    curve = end + (top - end) * 0.5 * (1 + jnp.cos(jnp.pi * part))
    lr = jnp.where((x >= start) & (x < start + length), curve, lr)
    start += length
  if warmup:
    lr = jnp.where(
        t < warmup, warmup_init + t * ((peak - warmup_init) / warmup), lr)
  return lr


SCHEDULES = ('constant', 'cosine', 'linear', 'rsqrt', 'polynomial', 'step',
             'timm_cosine')


def _duration(cfg, name, steps_per_epoch, batch_size) -> float:
  """Steps of cfg.{name}_steps, _epochs or _examples; at most one is set."""
  units = {'steps': 1, 'epochs': steps_per_epoch, 'examples': 1 / batch_size}
  given = {u: cfg.get(f'{name}_{u}') for u in units}
  given = {u: value for u, value in given.items() if value}
  if len(given) > 1:
    raise ValueError(
        'schedule: ' + ' and '.join(f'{name}_{u}' for u in given)
        + ' are both set; give at most one of them')
  for unit, value in given.items():
    if value < 0:
      raise ValueError(f'schedule.{name}_{unit}={value} is negative')
    return value * units[unit]
  return 0


def make_schedule(cfg_schedule, cfg_optim, *, total_steps: int,
                  steps_per_epoch: float, batch_size: int) -> Schedule:
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
        f'schedule.name={cfg.name!r}; allowed: {", ".join(SCHEDULES)}')
  peak = float(cfg_optim.lr)
  if cfg_optim.lr_batch:
    peak *= batch_size / cfg_optim.lr_batch
  warmup = _duration(cfg, 'warmup', steps_per_epoch, batch_size)
  cooldown = _duration(cfg, 'cooldown', steps_per_epoch, batch_size)
  if warmup + cooldown >= total_steps:
    raise ValueError(
        f'schedule: {warmup:g} steps of warm-up and {cooldown:g} of cooldown '
        f'do not fit into a run of {total_steps} steps: shorten them, or '
        'lengthen the run (run.steps, epochs or examples)')
  if cfg.name == 'timm_cosine':
    curve = functools.partial(
        timm_cosine, peak=peak, period=total_steps - cooldown, end=cfg.end,
        warmup=warmup, warmup_init=cfg.warmup_init)
    if not cfg.by_epoch:
      return Schedule(curve, peak)

    def by_epoch(step):
      # The half keeps the division of whole numbers on the right side.
      epoch = jnp.floor((jnp.asarray(step, jnp.float32) + 0.5)
                        / steps_per_epoch)
      return curve(jnp.maximum(epoch - cfg.epoch_lag, 0) * steps_per_epoch)

    return Schedule(by_epoch, peak)
  if cfg.by_epoch:
    raise ValueError('schedule.by_epoch is only for schedule.name='
                     f"'timm_cosine', not {cfg.name!r}")
  boundaries = [round(b * total_steps) if 0 < b < 1 else b
                for b in cfg.boundaries]
  if boundaries != sorted(boundaries) or any(b <= 0 for b in boundaries):
    raise ValueError(f'schedule.boundaries={tuple(cfg.boundaries)} must be '
                     'positive and increasing: fractions of the run, or steps')
  if (cfg.name == 'step') != bool(boundaries):
    raise ValueError("schedule.boundaries go with schedule.name='step', and "
                     f'only with it: name={cfg.name!r}, '
                     f'boundaries={tuple(cfg.boundaries)}')
  fn = functools.partial(
      learning_rate, name=cfg.name, peak=peak, total_steps=total_steps,
      warmup_steps=warmup, warmup_init=cfg.warmup_init, end=cfg.end,
      power=cfg.power, timescale=cfg.timescale, cooldown_steps=cooldown,
      boundaries=boundaries,
      multipliers=[cfg.factor ** (i + 1) for i in range(len(boundaries))])
  return Schedule(fn, peak)


@dataclasses.dataclass(frozen=True)
class HyperRule:
  """What BiT-HyperRule sets for a data set (arXiv:1912.11370, sec. 3.3)."""

  resize: int  # of both sides, before the crop
  crop: int
  steps: int
  warmup_steps: int
  boundaries: tuple[int, ...]  # of a 'step' schedule with factor 0.1
  mixup: float


def hyperrule(num_examples: int, width: int, height: int) -> HyperRule:
  """BiT-HyperRule for `num_examples` training images of a typical size."""
  resize, crop = (160, 128) if width * height < 96 * 96 else (512, 480)
  if num_examples < 20_000:
    steps, warmup, drops = 500, 100, (200, 300, 400)
  elif num_examples < 500_000:
    steps, warmup, drops = 10_000, 500, (3_000, 6_000, 9_000)
  else:
    steps, warmup, drops = 20_000, 500, (6_000, 12_000, 18_000)
  # The official rate falls strictly after a boundary, a 'step' schedule at it.
  boundaries = tuple(d + 1 for d in drops)
  mixup = 0.1 if num_examples >= 20_000 else 0.0
  return HyperRule(resize, crop, steps, warmup, boundaries, mixup)


# --------------------------------------------------- rates of the parameters


def path_name(path) -> str:
  """A jax key path as 'Transformer/encoderblock_0/...'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flat_paths(params) -> dict:
  """{path: leaf} in tree order."""
  return {path_name(p): leaf
          for p, leaf in jax.tree_util.tree_leaves_with_path(params)}


@dataclasses.dataclass(frozen=True)
class Rate:
  """How fast one parameter moves: factors of the lr and of the weight decay.

  `lr` is a float, or an array (L, 1, ..., 1) for a stack of L scanned blocks.
  `frozen`: never moves, has no optimizer state and is not in the clipped norm.
  """

  lr: float | np.ndarray = 1.0
  decay: float = 0.0
  frozen: bool = False


# Stacks of blocks in forward order; the first group is the index in the stack,
# absent if the blocks are scanned. ResNet stages have two indices.
_STACKS = (
    re.compile(r'block(\d+)/unit(\d+)/.*'),
    re.compile(r'outlooker(?:_(\d+))?/.*'),
    re.compile(
        r'(?:(?:Transformer/)?encoderblock|MixerBlock|block)(?:_(\d+))?/.*'),
    re.compile(r'cls_block(?:_(\d+))?/.*'),
)
# What comes after the last block; everything else is before the first.
_TOP = re.compile(
    r'((Transformer/)?encoder_norm|head|head_dist|aux_head|pre_logits|'
    r'pre_head_layer_norm|norm-pre-head|MAPHead_\d+|lca|pos_layer_embedding)'
    r'(/.*)?')


def block_positions(params) -> dict:
  """Where each parameter stands between the input (0) and the head (L + 1).

  Returns:
    {path: position}, an int, or an int array for a stack of scanned blocks:
    0 for the stem, tokens and position tables, 1 .. L for the L blocks in
    forward order, L + 1 for what follows them.
  """
  keys = {}  # path -> list of sortable block keys
  for path, leaf in flat_paths(params).items():
    for rank, stack in enumerate(_STACKS):
      match = stack.fullmatch(path)
      if match:
        index = [int(g) for g in match.groups() if g is not None]
        if index:
          keys[path] = [(rank, 0, *index)]
        else:  # scanned blocks follow the unrolled ones of the same stack
          keys[path] = [(rank, 1, i) for i in range(leaf.shape[0])]
        break
  order = sorted({k for ks in keys.values() for k in ks})
  number = {k: i + 1 for i, k in enumerate(order)}
  positions = {}
  for path in flat_paths(params):
    if path in keys:
      where = np.array([number[k] for k in keys[path]])
      stacked = keys[path][0][1] == 1
      positions[path] = where if stacked else int(where[0])
    else:
      positions[path] = len(order) + 1 if _TOP.fullmatch(path) else 0
  return positions


def _layer_factors(layer_decay: float, params) -> dict:
  """{path: layer_decay ** (number of steps below the head)}."""
  positions = block_positions(params)
  last = max((int(np.max(p)) for p in positions.values()), default=0)
  blocks = [p for p in positions.values() if 0 < np.max(p)]
  if not blocks or last < 2:
    raise ValueError(f'optim.layer_decay={layer_decay}: no stack of blocks in '
                     f'the parameters {_names(flat_paths(params))}')
  factors = {}
  for path, leaf in flat_paths(params).items():
    position = positions[path]
    factor = np.power(np.float32(layer_decay), last - position)
    if isinstance(position, np.ndarray):
      factors[path] = factor.astype(np.float32).reshape(
          -1, *(1,) * (leaf.ndim - 1))
    else:
      factors[path] = float(factor)
  return factors


def _names(paths, limit: int = 8) -> str:
  paths = list(paths)
  more = f', ... ({len(paths)} in all)' if len(paths) > limit else ''
  return ', '.join(paths[:limit]) + more


def _check_matches(pattern: str, key: str, paths) -> list[str]:
  """Paths that the regex matches as a whole; ValueError if there is none."""
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise ValueError(f'{key}: {pattern!r} is not a regular expression: '
                     f'{e}') from None
  found = [p for p in paths if regex.fullmatch(p)]
  if not found:
    word = re.sub(r'[^\w/]+', '', pattern)
    near = [p for p in paths if regex.search(p)] or [
        p for p in paths if word and word.lower() in p.lower()
    ] or difflib.get_close_matches(word, paths, n=5, cutoff=0.3)
    hint = f'near it: {_names(near)}' if near else f'there are: {_names(paths)}'
    raise ValueError(
        f'{key}: {pattern!r} matches no parameter (the whole path must match, '
        f"as in 'head/.*'); {hint}")
  return found


def parameter_rates(cfg, params) -> dict[str, Rate]:
  """The `Rate` of every parameter, from the recipe's `optim` section.

  Reads decay_mask, groups and layer_decay. The lr factor is that of the first
  matching group times that of the layer; an lr factor of 0 freezes.
  """
  flat = flat_paths(params)
  rates = {path: Rate(decay=0.0) for path in flat}
  if cfg.weight_decay:
    for path in _check_matches(cfg.decay_mask, 'optim.decay_mask', flat):
      rates[path] = Rate(decay=1.0)
  if cfg.layer_decay != 1:
    for path, factor in _layer_factors(cfg.layer_decay, params).items():
      rates[path] = dataclasses.replace(rates[path], lr=factor)
  taken = set()
  for pattern, factors in cfg.groups:
    unknown = set(factors) - {'lr', 'decay'}
    if unknown:
      raise ValueError(f'optim.groups: {pattern!r} sets {sorted(unknown)}; '
                       "allowed: 'lr', 'decay'")
    for path in _check_matches(pattern, 'optim.groups', flat):
      if path in taken:
        continue
      taken.add(path)
      lr, decay = factors.get('lr', 1.0), factors.get('decay', 1.0)
      if lr < 0 or decay < 0:
        raise ValueError(f'optim.groups: {pattern!r} has a negative factor: '
                         f'{dict(factors)}')
      rates[path] = Rate(lr=rates[path].lr * lr,
                         decay=rates[path].decay * decay, frozen=lr == 0)
  if all(r.frozen for r in rates.values()):
    raise ValueError('optim.groups freezes every parameter: nothing is trained')
  return rates


# --------------------------------------------------------------- optimizers


def scale_by_adafactor(b1: float, b2: float, state_dtype):
  """big_vision's Adafactor (arXiv:2106.04560, sec. 3.4).

  Second moments factored from 32 x 32 on, their decay min(b2, 1 - t^-0.8);
  no relative step size; first moment `b1` without bias correction.
  """
  def decay(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(b2, 1 - t ** -exponent)

  rms = optax.scale_by_factored_rms(
      decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=decay)
  if not b1:
    return rms
  return optax.chain(
      rms, optax.ema(b1, debias=False, accumulator_dtype=state_dtype))


def _adam(cfg):
  return optax.scale_by_adam(
      cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.dtype(cfg.state_dtype))


# 'adam' is big_vision's name for it; the decay is decoupled in either.
OPTIMIZERS = {
    'adamw': _adam,
    'adam': _adam,
    'sgd': lambda cfg: optax.trace(
        cfg.momentum, accumulator_dtype=jnp.dtype(cfg.state_dtype)),
    'adafactor': lambda cfg: scale_by_adafactor(
        cfg.b1, cfg.b2, jnp.dtype(cfg.state_dtype)),
}
DECAY_STYLES = ('lr', 'schedule')
STATE_DTYPES = ('float32', 'bfloat16')


def _apply_rates(cfg, schedule: Schedule, rates: dict[str, Rate]):
  """Learning rate, decay and their factors: directions -> updates.

  With lr_t of the schedule and a parameter's factors f and g,
  'lr':       update = -lr_t f (direction + weight_decay g p)
  'schedule': update = -lr_t f direction - (lr_t / peak) weight_decay g p
  """
  peak = schedule.peak or 1.0  # with lr = 0 nothing moves

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(directions, state, params):
    lr = schedule(state.count)

    def one(path, direction, p):
      rate = rates[path_name(path)]
      change = lr * rate.lr * direction
      if rate.decay and cfg.weight_decay:
        factor = lr * rate.lr if cfg.decay_style == 'lr' else lr / peak
        change += factor * (cfg.weight_decay * rate.decay) * p
      return -change.astype(p.dtype)

    updates = jax.tree_util.tree_map_with_path(one, directions, params)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(init, update)


def make_optimizer(cfg, schedule, params) -> optax.GradientTransformation:
  """Clip, optimizer, rates and decay of a recipe, in this order.

  Args:
    cfg: the recipe's `optim` section. `accumulate` and `ema` are for the train
      step.
    schedule: a `Schedule`, or step -> learning rate whose peak is `cfg.lr`.
    params: the parameters, or their ShapeDtypeStructs: only names and shapes
      are used.

  Returns:
    The transformation. Frozen parameters have no state and take no part in the
    norm that is clipped. Its `update` needs the parameters.
  """
  for key, allowed in (('name', OPTIMIZERS), ('decay_style', DECAY_STYLES),
                       ('state_dtype', STATE_DTYPES)):
    if cfg[key] not in allowed:
      raise ValueError(
          f'optim.{key}={cfg[key]!r}; allowed: {", ".join(allowed)}')
  for key in ('lr', 'weight_decay', 'clip', 'layer_decay'):
    if not cfg[key] >= 0:
      raise ValueError(f'optim.{key}={cfg[key]} must not be negative')
  if not isinstance(schedule, Schedule):
    schedule = Schedule(schedule, float(cfg.lr))
  rates = parameter_rates(cfg, params)
  tx = optax.chain(
      optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
      OPTIMIZERS[cfg.name](cfg),
      _apply_rates(cfg, schedule, rates))
  if not any(r.frozen for r in rates.values()):
    return tx
  labels = jax.tree_util.tree_map_with_path(
      lambda path, _: 'frozen' if rates[path_name(path)].frozen else 'trained',
      params)
  return optax.partition(
      {'trained': tx, 'frozen': optax.set_to_zero()}, labels)


# ------------------------------------------------------ averages and safety


def ema_update(ema, params, decay: float, step=None):
  """Moving average of the parameters: ema + (1 - d) (params - ema).

  Args:
    ema: the average, a tree like `params`, at first a copy of it.
    params: the new parameters.
    decay: d, as DeiT's 0.99996.
    step: updates made before this one. If given, d is ramped up as min(decay,
      (1 + step) / (10 + step)), so that short runs forget their start; None
      for the constant decay of timm.

  Returns:
    The new average.
  """
  if step is not None:
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(
      lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), ema, params)


def all_finite(*trees):
  """Whether every number in the trees is finite: a bool scalar."""
  leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(trees)]
  return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)


def skip_nonfinite(finite, new, old):
  """`new` if the bool scalar `finite`, else `old`: trees of one structure."""
  return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
