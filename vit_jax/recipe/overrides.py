"""Loads a recipe file and sets keys of it from KEY=VALUE texts."""

import ast
import importlib.util
import pathlib

from vit_jax.recipe.keys import ConfigError


def set_model_fields(config, fields: dict[str, str]) -> None:
  """Sets fields of the model from text: Python literals, or plain strings."""
  for field, value in fields.items():
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      pass  # such as map in --config.model.pool=map
    with config.ignore_type():
      config.model[field] = value


def load_recipe(path: str):
  """The module of a recipe file; ConfigError if there is none."""
  if not pathlib.Path(path).is_file():
    raise ConfigError(f'{path}: there is no such recipe')
  spec = importlib.util.spec_from_file_location(
    f'recipe_{pathlib.Path(path).stem}', path
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def set_key(config, key: str, value):
  """config.a.b = value of 'a.b'; ConfigError if the recipe has no such key."""
  *parents, last = key.split('.')
  try:
    for part in parents:
      config = config[part]
    config[last] = value
  except (KeyError, AttributeError, TypeError) as e:
    raise ConfigError(f'{key}={value!r} does not fit the recipe: {e}') from e
