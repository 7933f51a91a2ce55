"""A teacher that runs inside the train step (arXiv:2012.12877).

It sees the very images of the student: augmented, mixed and erased. Any
registered model with weights can be a teacher:

    config.loss.teacher_weights = 'runs/teacher'           # knows its model
    config.loss.teacher, config.loss.teacher_weights = 'bit_r50x1', 'BiT.npz'

`teacher_weights = 'random'` takes fresh parameters, for smoke runs and
benchmarks.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from absl import logging
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


@dataclasses.dataclass(frozen=True)
class LiveTeacher:
  """A model with its variables, and how it is fed.

  Attributes:
    model: Linen module.
    variables: {'params': ..., 'batch_stats': ...} of numpy arrays, or of
      shapes (`jax.ShapeDtypeStruct`) where no values are needed.
    size: (height, width) of the images that it is given.
    normalize: see `preprocessing.normalization`.
    classes: class names, None if unknown.
  """

  model: Any
  variables: Any
  size: tuple[int, int]
  normalize: str
  classes: Sequence[str] | None


def load_live(
  weights: str, name: str, size: tuple[int, int], num_classes: int
) -> LiveTeacher:
  """Loads a teacher with its weights.

  Args:
    weights: see `load_classifier`, or 'random' for fresh parameters.
    name: registered model; '' for weights that know their model.
    size: (height, width) of the images that it is given.
    num_classes: of a teacher with fresh parameters.

  Raises:
    ConfigError: 'random' without a name.
    WeightsError: weights that cannot be read, or of another model.
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
  """The same teacher as `load_live`, with shapes in the place of values.

  Weights that are not on this machine are taken to be those of the named
  model, so that a recipe can be compiled where its files are not. A hub name
  is not fetched if it tells the model.
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
) -> tuple[Any, Callable]:
  """A model whose blocks are scanned where they can be, and its `init`."""
  if not name:
    raise ConfigError(
      f'loss.teacher_weights={RANDOM!r} needs loss.teacher, the name of a model'
    )
  fields = {f.name for f in dataclasses.fields(model_info(name).module)}
  model = create_model(
    name, num_classes, **({'scan': True} if 'scan' in fields else {})
  )
  image = jnp.zeros((1, *size, 3))
  return model, lambda: model.init(jax.random.key(0), image, train=False)


def live_function(
  model: Any, size: tuple[int, int], student: str, own: str
) -> Callable:
  """`teacher(variables, images, batch) -> logits` of a model in eval mode.

  Args:
    model: Linen module.
    size: (height, width) of the images that it is given.
    student: normalization of the student's images.
    own: normalization that the teacher was trained with.

  Returns:
    A pure function whose logits are (B, C) float32 and have no gradient.
  """

  def teacher(variables, images, batch):
    del batch
    images = renormalize(images, size, student, own).astype(images.dtype)
    logits, _ = model.apply(variables, images, train=False)
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher


def teacher_shardings(variables: Any, mesh: Mesh, preset: str) -> Any:
  """Shardings of a teacher: its parameters are split as a student's are.

  Args:
    variables: tree of arrays or shapes.
    mesh: of the run.
    preset: key of `mesh.PRESETS`.

  Returns:
    A tree of NamedSharding. What is no parameter is replicated.
  """
  return {
    collection: jax.tree.map(
      lambda spec: NamedSharding(mesh, spec),
      rules.param_specs(tree, mesh, preset)
      if collection == 'params'
      else jax.tree.map(lambda _: P(), tree),
      is_leaf=lambda x: isinstance(x, P),
    )
    for collection, tree in flax.core.unfreeze(dict(variables)).items()
  }


def put_teacher(variables: Any, mesh: Mesh, preset: str) -> Any:
  """A teacher's numpy variables as arrays on the mesh."""
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
  """Converts images that were normalized for one model to another's.

  Args:
    images: (B, H, W, 3), normalized in the style `old`.
    size: (height, width) of the result; bilinear, half-pixel centers, no
      antialiasing.
    old, new: see `preprocessing.normalization`.

  Returns:
    (B, height, width, 3) float32.
  """
  if images.shape[1:3] != tuple(size):
    images = augment.resize(images, (size[0], size[1]))
  images = images.astype(jnp.float32)
  if old == new:
    return images
  # pixel = x * old_std + old_mean, then (pixel - new_mean) / new_std. Resizing
  # first gives the same, because the weights of a resize add up to 1.
  (old_mean, old_std), (new_mean, new_std) = (
    np.asarray(normalization(style), np.float32).reshape(2, 1, 1, 1, 3)
    for style in (old, new)
  )
  return images * (old_std / new_std) + (old_mean - new_mean) / new_std
