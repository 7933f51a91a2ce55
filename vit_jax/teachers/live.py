"""The teacher of distillation (arXiv:2012.12877): a live model, or its logits.

A live teacher runs inside the jitted train step, on the very images of the
student: augmented, mixed, erased. Any registered model with weights will do,

    config.loss.teacher_weights = 'runs/teacher'           # knows its model
    config.loss.teacher, config.loss.teacher_weights = 'bit_r50x1', 'BiT.npz'

and `teacher_weights = 'random'` takes fresh parameters, for smoke runs and
benchmarks. Stored logits are computed once,

    vit-jax teacher-logits WEIGHTS --source SOURCE --data-dir DIR -o LOGITS

and given as `teacher_weights = LOGITS`. They are of whole, unaugmented images,
so crops and flips of the student's view do not reach them (the "fixed teacher"
of arXiv:2106.05237, which finds consistent views better), and they cannot go
with mixup or CutMix.
"""

import dataclasses

from absl import logging
import flax
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from vit_jax.inference import classifier
from vit_jax.models.registry import create_model, model_info
from vit_jax.parallel import rules
from vit_jax.preprocessing import NORMALIZATION
from vit_jax.recipe.keys import ConfigError, image_shape
from vit_jax.teachers.classes import check_classes
from vit_jax.training import augment

LOGITS, META = 'logits.npy', 'logits.json'  # of a directory of stored logits
RANDOM = 'random'


# --- A live teacher ---------------------------------------------------------


def _live(config, mesh, num_classes, class_names):
  loss = config.loss
  size = loss.teacher_image_size or image_shape(config)
  size = (size, size) if isinstance(size, int) else size
  if loss.teacher_weights == RANDOM:
    model, variables = _fresh(loss.teacher, num_classes, size)
    normalize, classes = model_info(loss.teacher).preprocessing.normalize, None
  else:
    found = classifier.load_classifier(
      loss.teacher_weights, model=loss.teacher or None, image_size=size
    )
    model, variables = found.model, found.variables
    normalize, classes = found.normalize, found.classes
  check_classes(
    loss.teacher_weights, model.num_classes, classes, num_classes, class_names
  )
  dtype = config.run.dtype
  if dtype == 'auto':
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    dtype = 'float32' if on_cpu else 'bfloat16'
  teacher = live_teacher(
    model.clone(dtype=dtype),
    size,
    config.data.normalize,
    loss.teacher_normalize or normalize,
  )
  return teacher, place(variables, mesh, config.mesh.preset)


def live_teacher(model, size: tuple[int, int], student: str, own: str):
  """`teacher(variables, images, batch) -> logits` of a model in eval mode.

  Args:
    model: the Linen module.
    size: (height, width) that it is given.
    student, own: normalisation of the images, and the one that it wants.
  """

  def teacher(variables, images, batch):
    del batch
    images = renormalize(images, size, student, own).astype(images.dtype)
    logits, _ = model.apply(variables, images, train=False)
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher


def _fresh(name: str, num_classes: int, size):
  """A model with initial parameters, its blocks scanned where it can."""
  if not name:
    raise ConfigError(
      f'loss.teacher_weights={RANDOM!r} needs loss.teacher, the name of a model'
    )
  fields = {f.name for f in dataclasses.fields(model_info(name).module)}
  model = create_model(
    name, num_classes, **({'scan': True} if 'scan' in fields else {})
  )
  logging.warning('the teacher %s has random parameters', name)
  init = jax.jit(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
  )
  return model, jax.device_get(init())


def place(variables, mesh, preset: str):
  """Numpy variables -> arrays on the mesh, split as a student's would be."""
  specs = {
    name: (
      rules.param_specs(tree, mesh, preset)
      if name == 'params'
      else jax.tree.map(lambda _: P(), tree)
    )
    for name, tree in variables.items()
  }
  put = lambda x, spec: jax.make_array_from_callback(
    np.shape(x), NamedSharding(mesh, spec), lambda index: np.asarray(x)[index]
  )
  return jax.tree.map(put, flax.core.unfreeze(dict(variables)), specs)


def renormalize(images, size: tuple[int, int], old: str, new: str):
  """Images normalised for one model, as another wants them.

  Args:
    images: (B, H, W, 3), normalised in the style `old`.
    size: (height, width) wanted; bilinear, half-pixel centres, no antialias.
    old, new: keys of NORMALIZATION.

  Returns:
    (B, height, width, 3) float32.
  """
  if images.shape[1:3] != tuple(size):
    images = augment.resize(images, tuple(size))
  images = images.astype(jnp.float32)
  if old == new:
    return images
  # pixel = x * std + mean of the old, then (pixel - mean) / std of the new;
  # it commutes with the resize, whose weights add up to 1.
  (old_mean, old_std), (new_mean, new_std) = (
    np.asarray(NORMALIZATION[style], np.float32).reshape(2, 1, 1, 1, 3)
    for style in (old, new)
  )
  return images * (old_std / new_std) + (old_mean - new_mean) / new_std
