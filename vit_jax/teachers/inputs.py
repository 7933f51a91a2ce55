"""The input of the training step of a run, with its teacher."""

from typing import Any

from vit_jax.data.sources.source import Source
from vit_jax.recipe.build import Run
from vit_jax.recipe.inputs import TrainInput, train_input
from vit_jax.teachers.teacher import make_teacher


def input_with_teacher(
  run: Run, source: Source
) -> tuple[TrainInput, dict[str, Any]]:
  """Opens the training input of a run, and loads the teacher of its recipe.

  Args:
    run: what `build` returned.
    source: the training data.

  Returns:
    The input, whose extras have the teacher's variables; and the arguments
    `teacher` and `load_batch` of `vit_jax.recipe.build.compile_step`.

  Raises:
    ValueError: see `train_input` and `make_teacher`.
  """
  inputs, teacher = train_input(run, source), None
  if run.config.loss.distill != 'none':
    teacher, inputs.extras['teacher'] = make_teacher(
      run.config, run.mesh, run.num_classes, source
    )
  return inputs, {'teacher': teacher, 'load_batch': inputs.load_batch}
