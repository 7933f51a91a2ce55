"""Makes an optax transformation from the recipe's section `optim`.

Moments have the same tree as the parameters (and, except for Adafactor, the
same shapes). The path of every moment in the state therefore ends with the path
of its parameter, by which `parallel.rules` shards it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.training.rates import Rate, parameter_rates, path_name
from vit_jax.training.schedules import Schedule


def _adafactor(cfg, rates: dict[str, Rate]):
  """big_vision's Adafactor (arXiv:2106.04560, sec. 3.4).

  The decay of the second moment is at most `b2`. The step size does not depend
  on the size of the parameters. The first moment has the decay `b1`, or is left
  out if that is 0, and has no bias correction.
  """
  own = cfg.adafactor

  def decay(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(cfg.b2, 1 - t**-exponent)

  transformations = [
    optax.scale_by_factored_rms(
      decay_rate=own.decay_exponent,
      step_offset=own.decay_offset,
      min_dim_size_to_factor=own.min_factored,
      epsilon=own.eps,
      decay_rate_fn=decay,
    )
  ]
  if own.update_clip:
    transformations.append(optax.clip_by_block_rms(own.update_clip))
  if cfg.b1:
    dtype = jnp.dtype(cfg.state_dtype)
    transformations.append(
      optax.ema(cfg.b1, debias=False, accumulator_dtype=dtype)
    )
  if len(transformations) == 1:
    return transformations[0]
  return optax.chain(*transformations)


def _rmsprop(cfg, rates: dict[str, Rate]):
  """TensorFlow's RMSProp without its momentum, which `make_optimizer` adds.

  The mean square, with decay `b2`, starts at 1, and `eps` is inside of the
  square root, unlike in PyTorch.
  """
  del rates
  return optax.scale_by_rms(
    cfg.b2, cfg.eps, initial_scale=1.0, eps_in_sqrt=True
  )


def _adam(cfg, rates: dict[str, Rate]):
  del rates
  return optax.scale_by_adam(
    cfg.b1,
    cfg.b2,
    cfg.eps,
    mu_dtype=jnp.dtype(cfg.state_dtype),
    nesterov=cfg.nesterov,
  )


DECAY_STYLES = ('lr', 'schedule', 'coupled')
STATE_DTYPES = ('float32', 'bfloat16')


def _add_coupled_decay(weight_decay: float, rates: dict[str, Rate]):
  """Adds weight_decay * g * p to the gradient of a parameter p.

  g is the parameter's decay factor. This is an L2 penalty, as in PyTorch's SGD:
  the decay goes through the momentum and is multiplied by the learning rate.
  """

  def update(grads, state, params=None):

    def one(path, grad, p):
      factor = weight_decay * rates[path_name(path)].decay
      return grad + factor * p if factor else grad

    return jax.tree_util.tree_map_with_path(one, grads, params), state

  init = lambda params: optax.EmptyState()
  return optax.GradientTransformation(init, update)  # pyright: ignore


def _lamb(cfg, rates: dict[str, Rate]):
  """Adam's directions with decay, at the length of each parameter.

  LAMB (arXiv:1904.00962, algorithm 2) as in timm: the direction, to which the
  decay is added, is multiplied by |p| / |direction|; that factor is 1 for
  parameters without decay. Blocks that are stacked for a scan count as one
  parameter.
  """
  decayed = lambda tree: jax.tree_util.tree_map_with_path(
    lambda path, _: bool(rates[path_name(path)].decay), tree
  )
  return optax.chain(
    _adam(cfg, rates),
    _add_coupled_decay(cfg.weight_decay, rates),
    optax.masked(optax.scale_by_trust_ratio(), decayed),
  )


# Values of optim.name. 'adam' and 'adamw' are the same optimizer, because the
# way in which weights decay is another key, optim.decay_style.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': _adam,
  'adam': _adam,
  'sgd': lambda cfg, rates: optax.trace(
    cfg.momentum, cfg.nesterov, jnp.dtype(cfg.state_dtype)
  ),
  'adafactor': _adafactor,
  'lamb': _lamb,
  'rmsprop': _rmsprop,
}


def _apply_rates(cfg, schedule: Schedule, rates: dict[str, Rate]):
  """Multiplies the optimizer's directions by the rate, and adds the decay.

  With lr_t of the schedule, a parameter p and its factors f and g (`Rate`),
  'lr':       update = -lr_t f (direction + weight_decay g p)
  'schedule': update = -lr_t f direction - (lr_t / peak) weight_decay g p
  'coupled':  update = -lr_t f direction (the decay is in the gradient already)
  The direction of LAMB includes the decay.
  """
  peak = schedule.peak or 1.0  # avoids 0 / 0 for a learning rate of 0
  decays_here = cfg.decay_style != 'coupled' and cfg.name != 'lamb'

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(directions, state, params=None):
    lr = schedule(state.count)

    def one(path, direction, p):
      rate = rates[path_name(path)]
      change = lr * rate.lr * direction
      decays = rate.decay and cfg.weight_decay and decays_here
      if decays:
        factor = lr * rate.lr if cfg.decay_style == 'lr' else lr / peak
        change += factor * (cfg.weight_decay * rate.decay) * p
      return -change.astype(p.dtype)

    updates = jax.tree_util.tree_map_with_path(one, directions, params)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(init, update)  # pyright: ignore


def make_optimizer(
  cfg: Any, schedule: Callable[[Any], jax.Array], params: Any
) -> optax.GradientTransformation:
  """Clips the gradient, runs the optimizer, applies rates and weight decay.

  Args:
    cfg: the recipe's `optim` section. The training step, not the optimizer,
      reads `accumulate` and `ema`.
    schedule: a `Schedule`, or step -> learning rate whose peak is `cfg.lr`.
    params: the parameters, or their ShapeDtypeStructs: only names and shapes
      are used.

  Returns:
    The transformation. Frozen parameters have no state, and their gradients do
    not count in the norm that is clipped. `update` needs the parameters.

  Raises:
    ValueError: an unknown name, a negative value, or an error of
      `parameter_rates`.
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
  needed = {'lamb': 'lr', 'rmsprop': 'coupled'}.get(cfg.name)
  if cfg.weight_decay and needed and cfg.decay_style != needed:
    raise ValueError(
      f'optim.decay_style={cfg.decay_style!r} is not possible with optim.name='
      f'{cfg.name!r}, whose decay is part of its direction: set '
      f'optim.decay_style={needed!r}'
    )
  scale = OPTIMIZERS[cfg.name](cfg, rates)
  if cfg.decay_style == 'coupled':
    decay = _add_coupled_decay(cfg.weight_decay, rates)
    scale = optax.chain(decay, scale)
  steps = [
    optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
    scale,
    _apply_rates(cfg, schedule, rates),
  ]
  if cfg.name == 'rmsprop':  # the momentum is that of steps, not of directions
    steps.append(
      optax.trace(cfg.momentum, cfg.nesterov, jnp.dtype(cfg.state_dtype))
    )
  tx = optax.chain(*steps)
  if not any(r.frozen for r in rates.values()):
    return tx
  labels = jax.tree_util.tree_map_with_path(
    lambda path, _: 'frozen' if rates[path_name(path)].frozen else 'trained',
    params,
  )
  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)
