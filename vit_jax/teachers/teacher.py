"""The teacher of a recipe: a live model or stored logits."""

from collections.abc import Callable
from typing import Any

from vit_jax.teachers.live import _live
from vit_jax.teachers.stored_logits import _stored, is_stored


def make_teacher(
  config,
  mesh,
  num_classes: int,
  class_names=None,
  fingerprint: str | None = None,
) -> tuple[Callable, Any]:
  """The teacher of a recipe.

  Args:
    config: the recipe; see section `loss`. The teacher computes in the dtype
      that `run.dtype` gives the student.
    mesh: of the run. The teacher's parameters are split as `mesh.preset` splits
      the student's, stored logits by rows.
    num_classes, class_names: of the training data; names may be None.
    fingerprint: of the training source, for stored logits.

  Returns:
    `teacher(variables, images, batch) -> logits` (B, C) float32, and its
    variables on the mesh. `images` (B, H, W, 3) are the student's. The function
    is pure, has no gradient, and changes no BatchNorm statistics.

  Raises:
    ConfigError: other classes than the data's, or in another order; logits of
      other data; stored logits with mixing.
    WeightsError: weights that cannot be read, or of another model.
  """
  weights = config.loss.teacher_weights
  if is_stored(weights):
    return _stored(config, mesh, num_classes, class_names, fingerprint)
  return _live(config, mesh, num_classes, class_names)
