"""The state of training: parameters, optimizer, average, step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes, and a checkpoint holds."""

  step: jax.Array  # int32: finished steps
  params: Any
  batch_stats: Any  # BatchNorm statistics; {} for most models
  opt_state: Any
  ema: Any  # averaged parameters; {} without optim.ema
  ema_stats: Any  # averaged BatchNorm statistics; {} without optim.ema_stats
  bad_step: jax.Array  # int32: first step with a non-finite loss, -1 for none
  skipped: jax.Array  # int32: how many such steps were skipped


def init_variables(model, image_shape, seed: int):
  """Fresh variables of a model from the recipe's seed; call it inside jit."""
  images = jnp.zeros((1, *image_shape, 3))
  return model.init(jax.random.key(seed), images, train=False)


def init_state(
  variables, tx: optax.GradientTransformation, cfg_optim
) -> TrainState:
  """A state at step 0 with these variables.

  Args:
    variables: of the model.
    tx: the optimizer.
    cfg_optim: the recipe's `optim` section: `ema` and `ema_stats`.
  """
  params, stats = variables['params'], variables.get('batch_stats', {})
  # A copy: donated states must not hold one buffer twice.
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=stats,
    opt_state=tx.init(params),
    ema=copy(params) if cfg_optim.ema else {},
    ema_stats=copy(stats) if cfg_optim.ema and cfg_optim.ema_stats else {},
    bad_step=jnp.int32(-1),
    skipped=jnp.int32(0),
  )


def to_tree(state: TrainState) -> dict[str, Any]:
  """The state as plain nested dicts, for a checkpoint.

  Without averaged statistics the tree has no entry for them, as the checkpoints
  of earlier versions.
  """
  tree = flax.serialization.to_state_dict(state)
  if not state.ema_stats:
    del tree['ema_stats']
  return tree


def from_tree(state: TrainState, tree) -> TrainState:
  """`to_tree` backwards; `state` gives the structure."""
  return flax.serialization.from_state_dict(state, {'ema_stats': {}, **tree})
