"""Loads or makes the state that a run begins with."""

from collections.abc import Callable

import jax
import numpy as np

from vit_jax.recipe.build import Run
from vit_jax.recipe.keys import preprocessing
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.state import TrainState, from_tree, to_tree
from vit_jax.weights import load_pretrained
from vit_jax.weights.steps import load_tree


def initial_state(
  run: Run,
  checkpoints: Checkpoints,
  say: Callable[[str], None],
  new_head: bool = False,
) -> tuple[TrainState, int]:
  """The state that a run begins with, and its number of finished steps.

  The state comes from the first of these that exists: the newest readable step
  in the workdir, the run that `run.resume` names, the weights that
  `run.pretrained` names. Without any of them the parameters are fresh.

  Args:
    run: what `build` returned.
    checkpoints: the saved steps in the run's workdir.
    say: prints a line.
    new_head: start the head anew, whatever `run.pretrained` has.

  Raises:
    CheckpointError: a saved step does not fit the recipe.
    WeightsError: the weights cannot be read or do not fit the model.
  """
  config = run.config
  abstract = to_tree(run.abstract_state)
  restored = checkpoints.restore(abstract)
  if restored is not None:
    tree, _, step = restored
    say(f'resumed step {step} of {checkpoints.directory.parent}')
    return _forgiven(run, from_tree(run.abstract_state, tree)), step
  if config.run.resume:
    tree, _, path = load_tree(config.run.resume, abstract)
    say(f'resumed {path}')
    state = _forgiven(run, from_tree(run.abstract_state, tree))
    return state, int(state.step)
  return fresh_state(run, say, new_head), 0


def fresh_state(
  run: Run, say: Callable[[str], None], new_head: bool = False
) -> TrainState:
  """The state at step 0, with the weights of `run.pretrained` if it is set.

  Args:
    run, say, new_head: see `initial_state`.
  """
  config = run.config
  if config.run.pretrained:
    variables, report = load_pretrained(
      run.model,
      config.run.pretrained,
      preprocessing(config).size,
      new_head=new_head,
      prefix=config.run.prefix or None,
    )
    say(f'loaded {config.run.pretrained}\n{report}')
    return run.init_from(variables)
  return run.init()


def _forgiven(run: Run, state: TrainState) -> TrainState:
  """A restored state without the record of a step that was not finite.

  With run.nan='stop' a saved state has none, unless an earlier part of the run
  skipped such steps by run.nan='skip'. Those would stop this run at once.
  """
  if run.config.run.nan == 'skip' or int(state.bad_step) < 0:
    return state
  none = jax.device_put(np.int32(-1), run.shardings.bad_step)
  return state.replace(bad_step=none)
