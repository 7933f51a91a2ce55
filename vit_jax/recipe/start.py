"""The state that a run begins with."""

from collections.abc import Callable

from vit_jax.recipe.build import Run
from vit_jax.recipe.keys import preprocessing
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.state import TrainState, from_tree, to_tree
from vit_jax.weights import load_pretrained
from vit_jax.weights.steps import load_tree


def initial_state(
  run: Run, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[TrainState, int]:
  """State and step that a run begins with.

  The first that there is of: the newest readable step of its workdir, the run
  that `run.resume` names, the weights that `run.pretrained` names, fresh
  parameters.

  Args:
    run: what `build` made of the recipe.
    checkpoints: of the run's workdir.
    say: prints a line.

  Raises:
    CheckpointError: a step that does not fit the recipe.
    WeightsError: weights that cannot be read or do not fit the model.
  """
  config = run.config
  abstract = to_tree(run.abstract_state)
  restored = checkpoints.restore(abstract)
  if restored is not None:
    tree, _, step = restored
    say(f'resumed step {step} of {checkpoints.directory.parent}')
    return from_tree(run.abstract_state, tree), step
  if config.run.resume:
    tree, _, path = load_tree(config.run.resume, abstract)
    say(f'resumed {path}')
    state = from_tree(run.abstract_state, tree)
    return state, int(state.step)
  if config.run.pretrained:
    variables, report = load_pretrained(
      run.model, config.run.pretrained, preprocessing(config).size
    )
    say(f'loaded {config.run.pretrained}\n{report}')
    return run.init_from(variables), 0
  return run.init(), 0
