"""The teacher of a recipe: a live model or stored logits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax.recipe.build import resolve_dtype
from vit_jax.recipe.keys import preprocessing
from vit_jax.teachers import live, stored_logits
from vit_jax.teachers.classes import check_classes


def make_teacher(
  config: Any,
  mesh: Mesh,
  num_classes: int,
  class_names: Sequence[str] | None = None,
  fingerprint: str | None = None,
) -> tuple[Callable, Any]:
  """The teacher of a recipe, with its variables on the mesh.

  Args:
    config: the recipe; see its section `loss`. The teacher computes in the
      dtype that `run.dtype` gives the student.
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
  weights, data = config.loss.teacher_weights, config.data
  if stored_logits.is_stored(weights):
    meta = stored_logits.read_metadata(weights)
    check_classes(
      weights, meta['num_classes'], meta['classes'], num_classes, class_names
    )
    stored_logits.check_data(
      weights, meta, fingerprint, f'{data.source}, split {data.split}'
    )
    stored_logits.check_not_mixed(weights, data.mixup, data.cutmix)
    variables = {'logits': stored_logits.put_logits(weights, mesh)}
    return stored_logits.stored_function, variables
  teacher = live.load_live(
    weights, config.loss.teacher, _teacher_size(config), num_classes
  )
  check_classes(
    weights,
    teacher.model.num_classes,
    teacher.classes,
    num_classes,
    class_names,
  )
  variables = live.put_teacher(teacher.variables, mesh, config.mesh.preset)
  return _function(config, mesh, teacher), variables


def abstract_teacher(
  config: Any, mesh: Mesh, num_classes: int
) -> tuple[Callable, Any]:
  """The teacher of a recipe with shapes in the place of its variables.

  It is the function of `make_teacher`, for compiling a step on devices that are
  not there. Weights that are not on this machine are taken to be those of the
  model `loss.teacher`.

  Args:
    config, mesh, num_classes: see `make_teacher`.

  Returns:
    The function, and a tree of `jax.ShapeDtypeStruct` with shardings.
  """
  weights = config.loss.teacher_weights
  if stored_logits.is_stored(weights):
    meta = stored_logits.read_metadata(weights)
    stored_logits.check_not_mixed(
      weights, config.data.mixup, config.data.cutmix
    )
    variables = {'logits': stored_logits.describe_logits(weights, meta, mesh)}
    return stored_logits.stored_function, variables
  teacher = live.describe_live(
    weights, config.loss.teacher, _teacher_size(config), num_classes
  )
  variables = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    teacher.variables,
    live.teacher_shardings(teacher.variables, mesh, config.mesh.preset),
  )
  return _function(config, mesh, teacher), variables


def _teacher_size(config: Any) -> tuple[int, int]:
  size = config.loss.teacher_image_size
  return (size, size) if size else preprocessing(config).size


def _function(config: Any, mesh: Mesh, teacher: live.LiveTeacher) -> Callable:
  dtype = resolve_dtype(config, mesh.devices.flat[0].platform)
  return live.live_function(
    teacher.model.clone(dtype=dtype),
    teacher.size,
    config.data.normalize,
    config.loss.teacher_normalize or teacher.normalize,
  )
