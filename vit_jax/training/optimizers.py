"""Learning-rate schedules and optimizers, as optax transformations.

`make_schedule` and `make_optimizer` read the recipe's `schedule` and `optim`
sections. Moments have the tree (and, Adafactor apart, the shapes) of the
parameters, so that the path of a state's leaf ends with its parameter's path.
Parameter paths are written 'Transformer/encoderblock_0/MlpBlock_0/...'.
"""

import dataclasses
import difflib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.training.schedules import Schedule

# --------------------------------------------------- rates of the parameters


def flat_paths(params) -> dict:
  """{path: leaf} in tree order."""
  return {
    jax.tree_util.keystr(p, simple=True, separator='/'): leaf
    for p, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


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
    r'(?:(?:Transformer/)?encoderblock|MixerBlock|block)(?:_(\d+))?/.*'
  ),
  re.compile(r'cls_block(?:_(\d+))?/.*'),
)
# What comes after the last block; everything else is before the first.
_TOP = re.compile(
  r'((Transformer/)?encoder_norm|head|head_dist|aux_head|pre_logits|'
  r'pre_head_layer_norm|norm-pre-head|MAPHead_\d+|lca|pos_layer_embedding)'
  r'(/.*)?'
)


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
    raise ValueError(
      f'optim.layer_decay={layer_decay}: no stack of blocks in '
      f'the parameters {_names(flat_paths(params))}'
    )
  factors = {}
  for path, leaf in flat_paths(params).items():
    position = positions[path]
    factor = np.power(np.float32(layer_decay), last - position)
    if isinstance(position, np.ndarray):
      factors[path] = factor.astype(np.float32).reshape(
        -1, *(1,) * (leaf.ndim - 1)
      )
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
    raise ValueError(
      f'{key}: {pattern!r} is not a regular expression: {e}'
    ) from None
  found = [p for p in paths if regex.fullmatch(p)]
  if not found:
    word = re.sub(r'[^\w/]+', '', pattern)
    near = (
      [p for p in paths if regex.search(p)]
      or [p for p in paths if word and word.lower() in p.lower()]
      or difflib.get_close_matches(word, paths, n=5, cutoff=0.3)
    )
    hint = f'near it: {_names(near)}' if near else f'there are: {_names(paths)}'
    raise ValueError(
      f'{key}: {pattern!r} matches no parameter (the whole path must match, '
      f"as in 'head/.*'); {hint}"
    )
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
      raise ValueError(
        f'optim.groups: {pattern!r} sets {sorted(unknown)}; '
        "allowed: 'lr', 'decay'"
      )
    for path in _check_matches(pattern, 'optim.groups', flat):
      if path in taken:
        continue
      taken.add(path)
      lr, decay = factors.get('lr', 1.0), factors.get('decay', 1.0)
      if lr < 0 or decay < 0:
        raise ValueError(
          f'optim.groups: {pattern!r} has a negative factor: {dict(factors)}'
        )
      rates[path] = Rate(
        lr=rates[path].lr * lr, decay=rates[path].decay * decay, frozen=lr == 0
      )
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
    return jnp.minimum(b2, 1 - t**-exponent)

  rms = optax.scale_by_factored_rms(
    decay_rate=0.8, min_dim_size_to_factor=32, decay_rate_fn=decay
  )
  if not b1:
    return rms
  return optax.chain(
    rms, optax.ema(b1, debias=False, accumulator_dtype=state_dtype)
  )


def _adam(cfg):
  return optax.scale_by_adam(
    cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.dtype(cfg.state_dtype)
  )


# 'adam' is big_vision's name for it; the decay is decoupled in either.
OPTIMIZERS = {
  'adamw': _adam,
  'adam': _adam,
  'sgd': lambda cfg: optax.trace(
    cfg.momentum, accumulator_dtype=jnp.dtype(cfg.state_dtype)
  ),
  'adafactor': lambda cfg: scale_by_adafactor(
    cfg.b1, cfg.b2, jnp.dtype(cfg.state_dtype)
  ),
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
      rate = rates[jax.tree_util.keystr(path, simple=True, separator='/')]
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
  for key, allowed in (
    ('name', OPTIMIZERS),
    ('decay_style', DECAY_STYLES),
    ('state_dtype', STATE_DTYPES),
  ):
    if cfg[key] not in allowed:
      raise ValueError(
        f'optim.{key}={cfg[key]!r}; allowed: {", ".join(allowed)}'
      )
  for key in ('lr', 'weight_decay', 'clip', 'layer_decay'):
    if not cfg[key] >= 0:
      raise ValueError(f'optim.{key}={cfg[key]} must not be negative')
  if not isinstance(schedule, Schedule):
    schedule = Schedule(schedule, float(cfg.lr))
  rates = parameter_rates(cfg, params)
  tx = optax.chain(
    optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
    OPTIMIZERS[cfg.name](cfg),
    _apply_rates(cfg, schedule, rates),
  )
  if not any(r.frozen for r in rates.values()):
    return tx
  labels = jax.tree_util.tree_map_with_path(
    lambda path, _: (
      'frozen'
      if rates[jax.tree_util.keystr(path, simple=True, separator='/')].frozen
      else 'trained'
    ),
    params,
  )
  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)


def all_finite(*trees):
  """Whether every number in the trees is finite: a bool scalar."""
  leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(trees)]
  return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)


def skip_nonfinite(finite, new, old):
  """`new` if the bool scalar `finite`, else `old`: trees of one structure."""
  return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
