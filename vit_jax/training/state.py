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
  bad_step: jax.Array  # int32: first step with a non-finite loss, -1 for none
  skipped: jax.Array  # int32: how many such steps were skipped


def init_variables(model, image_shape, seed: int):
  """Fresh variables of a model from the recipe's seed; call it inside jit."""
  images = jnp.zeros((1, *image_shape, 3))
  return model.init(jax.random.key(seed), images, train=False)


def init_state(
  variables, tx: optax.GradientTransformation, ema: bool
) -> TrainState:
  """A state at step 0 with these variables."""
  params = variables['params']
  return TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=tx.init(params),
    # A copy: donated states must not hold one buffer twice.
    ema=jax.tree.map(jnp.copy, params) if ema else {},
    bad_step=jnp.int32(-1),
    skipped=jnp.int32(0),
  )


def to_tree(state: TrainState) -> dict[str, Any]:
  """The state as plain nested dicts, for a checkpoint."""
  return flax.serialization.to_state_dict(state)


def from_tree(state: TrainState, tree) -> TrainState:
  """`to_tree` backwards; `state` gives the structure."""
  return flax.serialization.from_state_dict(state, tree)
