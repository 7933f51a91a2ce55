"""The recipe of VTAB-1k: a task's 1,000 training images, one setting for all.

Two settings are published. The Vision Transformer's (arXiv:2010.11929, table 4
and appendix B.1.1) is 2,500 steps at a rate of 0.01 and 384 px. The light one
is that of the benchmark's released script for 1,000 images
(google-research/task_adaptation, run_all_tasks.sh): 1,000 steps of 64 images
of 224 px, at a rate of 0.01 that is divided by 10 after 300, 600 and 900 steps.

Both resize images to the model's size, whatever their aspect ratio, for
training and for testing, and change them in no other way: a flip or a crop
would change the label of some tasks.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax

from vit_jax.data.sources.vtab import find_task
from vit_jax.preprocessing import as_size
from vit_jax.recipe import finetuning, shared
from vit_jax.recipe.keys import ConfigError, default_config
from vit_jax.recipe.overrides import override
from vit_jax.recipe.sections import Config

RATE = 0.01


def vtab_config(model: str, task: str, *, light: bool = False) -> Config:
  """The recipe of a registered model and a task.

  Args:
    model: registered name.
    task: a key of `vit_jax.data.sources.vtab.TASKS`.
    light: the benchmark's own setting instead of the Vision Transformer's.

  Raises:
    ValueError: there is no such model or task.
  """
  find_task(task)
  c = default_config()
  c.run.name = f'{model} on {task} of VTAB-1k'
  c.model.name = model
  c.data.source, c.data.split = f'vtab:{task}', 'train800val200'
  c.eval.sets = {'test': {'split': 'test'}}
  shared.set_preprocessing(c)
  c.data.upright = False  # TensorFlow ignores EXIF
  c.data.crop, c.data.flip = 'resize', 0.0
  # TensorFlow's resize, which keeps floating-point pixels.
  c.data.interpolation = c.eval.interpolation = 'bilinear'
  c.data.rounding = c.eval.rounding = 'none'
  c.eval.crop = 0.0
  if light:
    c.data.batch_size, c.run.steps = 64, 1_000
    c.schedule.warmup_steps = 80
    c.optim.name, c.optim.lr = 'sgd', RATE
    c.schedule.name, c.schedule.boundaries = 'step', (0.3, 0.6, 0.9)
    finetuning.set_image_size(c, 224)
  else:
    c.data.batch_size, c.run.steps = finetuning.BATCH_SIZE, 2_500
    # Neither the paper nor a released file says how long the warm-up is: it is
    # that of all fine-tuning runs of more than 500 steps.
    c.schedule.warmup_steps = 500
    finetuning.set_optimizer(c, RATE)
    c.optim.accumulate = 8
    finetuning.set_image_size(c, 384)
  c.log.checkpoint_steps, c.log.keep_latest = c.run.steps // 5, 1
  return c


def task_config(
  model: str | None,
  weights: str,
  task: str,
  data: str,
  *,
  light: bool = False,
  steps: int | None = None,
  lr: float | None = None,
  batch_size: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  seed: int = 0,
  module: str = '',
  fields: dict[str, Any] | None = None,
  keys: Mapping[str, Any] | None = None,
) -> Config:
  """`vtab_config` for weights; see `vit_jax.finetuning.vtab`.

  Args:
    model: registered name; None takes the one that the weights name.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random parameters.
    task: a key of `vit_jax.data.sources.vtab.TASKS`.
    data: TFDS's data_dir; or a folder or packed directory of this task.
    light: as in `vtab_config`.
    steps, batch_size: instead of the published ones.
    lr: peak rate; by default the published one, in proportion to the batch
      size.
    image_size: pixels, or (height, width).
    seed: of the head and of the order of the images.
    module: Python module that registers the model.
    fields: {name: value} of fields of the model.
    keys: {'section.key': value} of other keys of the recipe.

  Raises:
    ConfigError: neither the arguments nor the weights name a model.
    ValueError: there is no such model or task.
  """
  metadata, known = finetuning.read_identity(model, weights, module)
  c = vtab_config(known.name, task, light=light)
  finetuning.set_model(c, metadata, known, module, fields)
  finetuning.set_normalization(c, known)
  c.run.pretrained, c.run.seed, c.data.dir = str(weights), seed, str(data)
  if weights:
    c.data.match_classes = 'new'  # even if the weights know the same classes
  for name, value in (('batch_size', batch_size), ('steps', steps)):
    if value is not None and value < 1:
      raise ConfigError(f'{name}={value}: must be at least 1')
  if batch_size is not None:
    c.optim.lr *= batch_size / c.data.batch_size
    c.data.batch_size = batch_size
    of_device = max(1, batch_size // jax.device_count())
    c.optim.accumulate = math.gcd(c.optim.accumulate, of_device)
  c.optim.lr = c.optim.lr if lr is None else lr
  if steps is not None:
    warmup = c.schedule.warmup_steps * steps // c.run.steps
    c.run.steps, c.schedule.warmup_steps = steps, warmup
    c.log.checkpoint_steps = -(-steps // 5)
    c.log.every_steps = max(1, min(c.log.every_steps, steps // 10))
  if image_size is not None:
    height, width = as_size(image_size)
    c.data.image_size = height
    c.data.image_width = width if width != height else None
  override(c, keys or {})
  return c
