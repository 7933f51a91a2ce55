"""The training state: parameters, optimizer state, moving average, step."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes and that a checkpoint holds."""

  step: jax.Array  # int32: number of finished steps
  params: Any
  batch_stats: Any  # BatchNorm statistics; {} for most models
  opt_state: Any
  ema: Any  # averaged parameters; {} without optim.ema
  ema_stats: Any  # averaged BatchNorm statistics; {} without optim.ema_stats
  # int32: the first step whose loss or gradient was not finite; -1 for none.
  bad_step: jax.Array
  skipped: jax.Array  # int32: number of such steps whose update was skipped


def init_variables(
  model: nn.Module, image_shape: tuple[int, int], seed: int
) -> Any:
  """Initial variables of a model; call it inside jit.

  Args:
    model: Linen module.
    image_shape: (height, width) of the images.
    seed: the recipe's run.seed.
  """
  images = jnp.zeros((1, *image_shape, 3))
  return model.init(jax.random.key(seed), images, train=False)


def init_state(
  variables: Mapping[str, Any],
  tx: optax.GradientTransformation,
  *,
  average: bool = False,
  average_stats: bool = False,
) -> TrainState:
  """The state at step 0 with given variables.

  Args:
    variables: variables of the model.
    tx: the optimizer.
    average: keep a moving average of the parameters.
    average_stats: with `average`, also keep one of the BatchNorm statistics.
  """
  params, stats = variables['params'], variables.get('batch_stats', {})
  # Copies, because a donated state must not hold one buffer twice.
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=stats,
    opt_state=tx.init(params),
    ema=copy(params) if average else {},
    ema_stats=copy(stats) if average and average_stats else {},
    bad_step=jnp.int32(-1),
    skipped=jnp.int32(0),
  )


def variables(state: TrainState, *, average: bool = False) -> dict[str, Any]:
  """The model's variables in a state.

  Args:
    state: the state of a run.
    average: take the moving averages of the parameters and of the BatchNorm
      statistics, as far as the state has them.
  """
  params, stats = state.params, state.batch_stats
  if average:
    params, stats = state.ema or params, state.ema_stats or stats
  return {'params': params, 'batch_stats': stats}


def to_tree(state: TrainState) -> dict[str, Any]:
  """The state as plain nested dicts, for a checkpoint.

  Without averaged statistics the tree has no entry for them, like the
  checkpoints of earlier versions.
  """
  tree = flax.serialization.to_state_dict(state)
  if not state.ema_stats:
    del tree['ema_stats']
  return tree


def from_tree(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
  """The state of a tree that `to_tree` made; `state` gives the structure."""
  restored: Any = flax.serialization.from_state_dict(
    state, {'ema_stats': {}, **tree}
  )
  return restored
