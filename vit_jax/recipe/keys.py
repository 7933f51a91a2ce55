"""The keys of a recipe with their defaults, and functions that read them.

A recipe `configs/X.py` starts from `default_config()` and sets keys of it.
Sections, in order: run, data, model, loss, optim, schedule, mesh, eval, log.
Every key is read somewhere, and any other key is an error. Only the section
`model` also takes the fields of the model's class.

The allowed values of a key stand beside the code that reads it, and
`vit_jax.recipe.checks` compares a recipe with them before anything is compiled.
"""

import json
from typing import Any

from ml_collections import ConfigDict

from vit_jax.data.decode import Decoding
from vit_jax.preprocessing import Preprocessing
from vit_jax.recipe import data_sections, sections
from vit_jax.recipe.sections import Config
from vit_jax.training import durations

DTYPES = ('auto', 'float32', 'bfloat16')
NAN_POLICIES = ('stop', 'skip')
EVAL_SET_KEYS = ('source', 'dir', 'split')

# Lengths that can be given in several units. At most one key of a group is set;
# setting one on the command line unsets the others.
DURATIONS = (
  ('run.steps', 'run.epochs', 'run.examples'),
  (
    'schedule.warmup_steps',
    'schedule.warmup_epochs',
    'schedule.warmup_examples',
  ),
  ('schedule.cooldown_steps', 'schedule.cooldown_epochs'),
  ('schedule.decay_steps', 'schedule.decay_epochs'),
  ('eval.every_steps', 'eval.every_epochs'),
  ('log.checkpoint_steps', 'log.checkpoint_minutes'),
)


class ConfigError(ValueError):
  """A recipe cannot work; the message names the value and the fix."""


def default_config() -> Config:
  """All keys with their defaults. Batch sizes are global.

  Keys are locked, so that a misspelled one is an error.
  """
  c = ConfigDict()
  c.run = sections.run()
  c.data = data_sections.data()
  c.data.update(data_sections.augmentation())
  c.model = sections.model()
  c.loss = sections.loss()
  c.optim = sections.optim()
  c.schedule = sections.schedule()
  c.mesh = sections.mesh()
  c.eval = sections.eval()
  c.log = sections.log()
  c.lock()
  c.model.unlock()  # takes the fields of the model
  c.eval.sets.unlock()  # takes the names of the sets
  return c


def get(config: Config, key: str) -> Any:
  """The value of a key that is written with dots, such as 'optim.lr'."""
  for name in key.split('.'):
    config = config[name]
  return config


def preprocessing(config: Config) -> Preprocessing:
  """How images are prepared for the model of a recipe in evaluation."""
  size = config.data.image_size
  return Preprocessing(
    size=(size, config.data.image_width or size),
    crop=config.eval.crop or None,
    interpolation=config.eval.interpolation,
    crop_resize=config.eval.crop_resize,
    rounding=config.eval.rounding,
    normalize=config.data.normalize,
    upright=config.data.upright,
  )


def decoding(config: Config) -> Decoding:
  """How the images of a recipe are decoded."""
  data = config.data
  return Decoding(data.jpeg_dct, data.upright, data.max_pixels)


def host_shape(config: Config) -> tuple[int, int]:
  """(height, width) of the images that the host makes.

  With data.device_resize the device then resizes them to the model's size.
  """
  size = config.data.device_resize
  return (size, size) if size else preprocessing(config).size


def load_model_module(config: Config) -> None:
  """Imports the user's module `model.module`, which registers the model.

  Raises:
    ConfigError: there is no such module.
  """
  from vit_jax.models.registry import load_module

  if config.model.get('module'):
    try:
      load_module(config.model.module)
    except ValueError as e:
      raise ConfigError(f'model.module={config.model.module!r}: {e}') from e


def model_fields(config: Config) -> dict[str, Any]:
  """The fields of the model class that `config.model` sets."""
  fields = {
    k: v for k, v in config.model.items() if k not in ('name', 'module')
  }
  return {
    k: v.to_dict() if isinstance(v, ConfigDict) else v
    for k, v in fields.items()
  }


def to_json(config: Config) -> dict[str, Any]:
  """The recipe as plain JSON values (for config.json and checkpoints)."""
  return json.loads(config.to_json_best_effort())


def in_steps(
  config: Config,
  section: str,
  prefix: str,
  *,
  steps_per_epoch: float,
) -> int | None:
  """A length of a recipe in whole steps, at least 1; None if it is not set.

  Args:
    config: the recipe.
    section: name of the section that has the keys.
    prefix: prefix of the keys: '' for run.{steps,epochs,examples}, 'every_' for
      eval.{every_steps,every_epochs}.
    steps_per_epoch: optimizer steps in one pass over the training images.
  """
  steps = durations.in_steps(
    config[section],
    prefix,
    steps_per_epoch=steps_per_epoch,
    batch_size=config.data.batch_size,
  )
  return None if steps is None else max(1, round(steps))
