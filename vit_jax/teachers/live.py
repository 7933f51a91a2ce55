"""A teacher that runs inside the train step (arXiv:2012.12877).

Its input is the images of the student, augmented, mixed and erased. Any
registered model with weights can be a teacher:

    config.loss.teacher_weights = 'runs/teacher'  # a workdir has its model
    config.loss.teacher, config.loss.teacher_weights = 'bit_r50x1', 'BiT.npz'

`teacher_weights = 'random'` makes a teacher with random parameters, for smoke
runs and benchmarks.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from absl import logging
from flax import linen as nn
import flax.core
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from vit_jax.inference.loading import load_classifier
from vit_jax.models.registry import (
  create_model,
  model_info,
  released_model,
)
from vit_jax.parallel import rules
from vit_jax.preprocessing import normalization
from vit_jax.recipe.keys import ConfigError
from vit_jax.training import augment
from vit_jax.weights import WeightsError

RANDOM = 'random'

# From (variables, the student's images (B, H, W, 3), batch) to the teacher's
# float32 logits (B, C).
TeacherFunction = Callable[[Any, jax.Array, dict[str, jax.Array]], jax.Array]


@dataclasses.dataclass(frozen=True)
class LiveTeacher:
  """A teacher: its model, variables, preprocessing and class names.

  Attributes:
    model: Linen module.
    variables: {'params': ..., 'batch_stats': ...} of numpy arrays, or of shapes
      (`jax.ShapeDtypeStruct`) where values are not needed.
    size: (height, width) of its input.
    normalize: normalization of its input, see `preprocessing.normalization`.
    classes: class names, None if they are not known.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  size: tuple[int, int]
  normalize: str
  classes: Sequence[str] | None


def load_live(
  weights: str, name: str, size: tuple[int, int], num_classes: int
) -> LiveTeacher:
  """Loads a teacher with its weights.

  Args:
    weights: as in `load_classifier`, or 'random' for random parameters.
    name: registered name of the model; '' for weights that tell their model.
    size: (height, width) of the teacher's input.
    num_classes: number of classes of a teacher with random parameters.

  Raises:
    ConfigError: the weights are 'random', and there is no name.
    WeightsError: the weights cannot be read, or are of another model.
  """
  if weights == RANDOM:
    model, init = _fresh(name, num_classes, size)
    logging.warning('the teacher %s has random parameters', name)
    normalize = model_info(name).preprocessing.normalize
    variables = jax.device_get(jax.jit(init)())
    return LiveTeacher(model, variables, size, normalize, None)
  loaded = load_classifier(weights, model=name or None, image_size=size)
  return LiveTeacher(
    loaded.model,
    loaded.variables,
    size,
    loaded.preprocessing.normalize,
    loaded.classes,
  )


def describe_live(
  weights: str, name: str, size: tuple[int, int], num_classes: int
) -> LiveTeacher:
  """The teacher of `load_live` with shapes instead of values.

  If the weights are not on this machine, they are taken to be those of the
  model `name`, so that a recipe can be compiled on a machine without its files.
  Weights on the hub are not downloaded if their name tells the model.

  Args:
    weights, name, size, num_classes: as in `load_live`.

  Raises:
    OSError, WeightsError: the weights cannot be read, and there is no name.
  """
  hub = weights.startswith('hf:')
  if hub:
    name = name or released_model(weights) or ''
  if weights != RANDOM and not (hub and name):
    try:
      teacher = load_live(weights, name, size, num_classes)
      shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), teacher.variables
      )
      return dataclasses.replace(teacher, variables=shapes)
    except (OSError, WeightsError):
      if not name:
        raise
  model, init = _fresh(name, num_classes, size)
  normalize = model_info(name).preprocessing.normalize
  return LiveTeacher(model, jax.eval_shape(init), size, normalize, None)


def _fresh(
  name: str, num_classes: int, size: tuple[int, int]
) -> tuple[nn.Module, Callable[[], Any]]:
  """A model, scanned if it can be, and a function that makes its variables."""
  if not name:
    raise ConfigError(
      f'loss.teacher_weights={RANDOM!r} needs the name of a model: set '
      'loss.teacher'
    )
  fields = {f.name for f in dataclasses.fields(model_info(name).module)}
  model = create_model(
    name, num_classes, **({'scan': True} if 'scan' in fields else {})
  )
  return model, lambda: model.init(
    jax.random.key(0), jnp.zeros((1, *size, 3)), train=False
  )


def live_function(
  model: nn.Module, size: tuple[int, int], student: str, own: str
) -> TeacherFunction:
  """The function that runs a model as a teacher, in evaluation mode.

  Args:
    model: Linen module.
    size: (height, width) of the teacher's input.
    student: normalization of the student's images.
    own: normalization of the teacher's input.

  Returns:
    A pure function whose logits are (B, C) float32 and have no gradient.
  """

  def teacher(variables, images, batch):
    del batch
    images = renormalize(images, size, student, own).astype(images.dtype)
    result: Any = model.apply(variables, images, train=False)
    logits, _ = result
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher


def teacher_shardings(
  variables: Mapping[str, Any], mesh: Mesh, preset: str
) -> dict[str, Any]:
  """The shardings of a teacher's variables.

  Its parameters are split as those of a student are in a step, so under 'zero'
  they are whole; running statistics are replicated.

  Args:
    variables: variables of the teacher, or their shapes.
    mesh: mesh of the run.
    preset: key of `mesh.PRESETS`.

  Returns:
    A tree of NamedSharding with the structure of `variables`.
  """
  return {
    collection: jax.tree.map(
      lambda spec: NamedSharding(mesh, spec),
      rules.param_specs(tree, mesh, 'data' if preset == 'zero' else preset)
      if collection == 'params'
      else jax.tree.map(lambda _: P(), tree),
      is_leaf=lambda x: isinstance(x, P),
    )
    for collection, tree in flax.core.unfreeze(dict(variables)).items()
  }


def put_teacher(
  variables: Mapping[str, Any], mesh: Mesh, preset: str
) -> dict[str, Any]:
  """Moves the numpy variables of a teacher to the devices of a mesh.

  Args:
    variables, mesh, preset: as in `teacher_shardings`.

  Returns:
    A tree of `jax.Array` with the structure of `variables`.
  """
  put = lambda x, sharding: jax.make_array_from_callback(
    np.shape(x), sharding, lambda index: np.asarray(x)[index]
  )
  return jax.tree.map(
    put,
    flax.core.unfreeze(dict(variables)),
    teacher_shardings(variables, mesh, preset),
  )


def renormalize(
  images: jax.Array, size: tuple[int, int], old: str, new: str
) -> jax.Array:
  """Converts images that were normalized for one model to those for another.

  Args:
    images: (B, H, W, 3), with the normalization `old`.
    size: (height, width) of the result. Images are resized by bilinear
      interpolation with half-pixel centers, without antialiasing.
    old, new: normalizations, see `preprocessing.normalization`.

  Returns:
    (B, height, width, 3) float32.
  """
  if images.shape[1:3] != tuple(size):
    images = augment.resize(images, (size[0], size[1]))
  images = images.astype(jnp.float32)
  if old == new:
    return images
  # The pixels are x * old_std + old_mean, and the result is
  # (pixels - new_mean) / new_std. Resizing before this gives the same result,
  # because the weights of a resize sum to 1.
  (old_mean, old_std), (new_mean, new_std) = (
    np.asarray(normalization(style), np.float32).reshape(2, 1, 1, 1, 3)
    for style in (old, new)
  )
  return images * (old_std / new_std) + (old_mean - new_mean) / new_std
