"""The teacher of a recipe: a model that runs in training, or stored logits."""

from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from vit_jax.data.sources.source import Source
from vit_jax.recipe.build import resolve_dtype
from vit_jax.recipe.keys import preprocessing
from vit_jax.recipe.sections import Config
from vit_jax.teachers import live, stored_logits
from vit_jax.teachers.classes import check_classes


def make_teacher(
  config: Config, mesh: Mesh, num_classes: int, source: Source | None = None
) -> tuple[live.TeacherFunction, dict[str, Any]]:
  """Loads the teacher of a recipe onto a mesh.

  Args:
    config: the recipe, of which the section `loss` names the teacher. The
      teacher computes in the dtype of the student, `run.dtype`.
    mesh: mesh of the run. The teacher's parameters are split by `mesh.preset`
      like the student's, and stored logits are split by rows.
    num_classes: number of classes of the training data.
    source: the training images. Its class names are compared with the
      teacher's, and its fingerprint with that of stored logits.

  Returns:
    The function of the teacher and its variables on the mesh. The function is
    pure; its logits have no gradient, and it does not change the teacher's
    BatchNorm statistics. The logits are in the order of the data's classes.

  Raises:
    ConfigError: the teacher's classes are not those of the data; stored logits
      are of other data, or the recipe mixes images.
    WeightsError: the weights cannot be read, or are of another model.
  """
  weights, data = config.loss.teacher_weights, config.data
  names = source.class_names if source is not None else None
  if stored_logits.is_stored(weights):
    meta = stored_logits.read_metadata(weights)
    columns = check_classes(
      weights,
      meta['num_classes'],
      meta['classes'],
      num_classes,
      names,
      data.match_classes,
    )
    stored_logits.check_data(
      weights, meta, source, f'{data.source}, split {data.split}'
    )
    stored_logits.check_not_mixed(weights, data.mixup, data.cutmix)
    variables = {'logits': stored_logits.put_logits(weights, mesh)}
    return _in_order(stored_logits.stored_function, columns), variables
  teacher = live.load_live(
    weights, config.loss.teacher, _teacher_size(config), num_classes
  )
  columns = check_classes(
    weights,
    teacher.model.num_classes,
    teacher.classes,
    num_classes,
    names,
    data.match_classes,
  )
  variables = live.put_teacher(teacher.variables, mesh, config.mesh.preset)
  return _in_order(_function(config, mesh, teacher), columns), variables


def _in_order(
  teacher: live.TeacherFunction, columns: list[int] | None
) -> live.TeacherFunction:
  """A teacher whose logits are those of some of its classes, in an order."""
  if columns is None:
    return teacher
  chosen = np.array(columns)
  return lambda variables, images, batch: teacher(variables, images, batch)[
    :, chosen
  ]


def abstract_teacher(
  config: Config, mesh: Mesh, num_classes: int
) -> tuple[live.TeacherFunction, dict[str, Any]]:
  """The teacher of `make_teacher` with shapes instead of variables.

  It serves to compile a train step for devices that this machine does not have.
  Weights that are not on this machine are taken to be those of the model
  `loss.teacher`.

  Args:
    config, mesh, num_classes: as in `make_teacher`.

  Returns:
    The function, and its variables as a tree of `jax.ShapeDtypeStruct` with
    shardings.
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


def _teacher_size(config: Config) -> tuple[int, int]:
  """(height, width) of the teacher's input; by default that of the student."""
  size = config.loss.teacher_image_size
  return (size, size) if size else preprocessing(config).size


def _function(
  config: Config, mesh: Mesh, teacher: live.LiveTeacher
) -> live.TeacherFunction:
  """The function of a live teacher, in the dtype of the student."""
  dtype = resolve_dtype(config, mesh.devices.flat[0].platform)
  return live.live_function(
    teacher.model.clone(dtype=dtype),
    teacher.size,
    config.data.normalize,
    config.loss.teacher_normalize or teacher.normalize,
  )
