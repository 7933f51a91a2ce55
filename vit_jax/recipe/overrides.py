"""Loads a recipe and sets keys of it from KEY=VALUE.

`python -m vit_jax.main`, `python -m vit_jax.ablate`, `vit-jax aot` and the
sweeps of recipes all use this module, so that keys are read and checked in the
same way everywhere:

    config = load_config('configs/finetune.py:b16', {'optim.lr': '0.01'})
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import difflib
import importlib.util
import pathlib
import sys
import traceback
import types
from typing import Any

from ml_collections import ConfigDict

from vit_jax.preprocessing import as_size
from vit_jax.recipe.keys import (
  DURATIONS,
  EVAL_SET_KEYS,
  ConfigError,
  default_config,
  get,
  load_model_module,
)
from vit_jax.recipe.sections import Config
from vit_jax.recipe.values import (
  FALSE,
  TRUE,
  convert,
  default_of,
  literal,
  nearest_word,
  type_name,
)

# Keys of the section `model` that are not fields of the model.
_MODEL_KEYS = ('model.name', 'model.module')


def load_config(
  source: str, overrides: Mapping[str, Any] | None = None
) -> Config:
  """The config of a recipe, with some keys set to other values.

  Args:
    source: 'configs/X.py' or 'configs/X.py:ARG'.
    overrides: {key: value}, such as {'optim.lr': '3e-4'}; see `override`.

  Returns:
    The `ConfigDict`, not yet checked (`vit_jax.recipe.checks.check`).

  Raises:
    ConfigError: there is no such file, it has a mistake, or an override has no
      such key or another type.
  """
  path, _, arg = source.partition(':')
  module = load_recipe(path)
  config = call_recipe(module, 'get_config', arg or None)
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      f'{path}: get_config() must return a ConfigDict, made by '
      f'vit_jax.recipe.keys.default_config(); it returned {type(config)}'
    )
  override(config, overrides or {})
  return config


def load_recipe(path: str) -> types.ModuleType:
  """The module of a recipe file; ConfigError if it cannot be loaded."""
  if not pathlib.Path(path).is_file():
    given = pathlib.Path(path)
    recipes = [str(x) for x in given.parent.glob('*.py')]
    if given.parent == pathlib.Path('.'):  # the directory is left out
      recipes += [str(x) for x in pathlib.Path('configs').glob('*.py')]
    by_name = {pathlib.Path(x).stem: x for x in recipes}
    near = difflib.get_close_matches(given.stem, by_name)
    if given.is_dir():
      raise ConfigError(f'{path} is a directory: name one of its recipes, X.py')
    raise ConfigError(
      f'{path}: there is no such recipe'
      + (f'; did you mean {by_name[near[0]]}?' if near else '')
    )
  spec = importlib.util.spec_from_file_location(
    f'recipe_{pathlib.Path(path).stem}', path
  )
  if spec is None or spec.loader is None:
    raise ConfigError(f'{path}: a recipe is a Python file, X.py')
  module = importlib.util.module_from_spec(spec)
  with _mistakes_of(path):
    spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{path} is no recipe: it has no function get_config')
  return module


def call_recipe(
  module: types.ModuleType, function: str, arg: str | None
) -> Any:
  """Calls `module.function(arg)`; mistakes of the recipe raise ConfigError."""
  with _mistakes_of(str(module.__file__)):
    return getattr(module, function)(arg)


@contextlib.contextmanager
def _mistakes_of(path: str):
  """Lets a recipe import its neighbors, and names the line of its mistakes.

  Recipes import one another as `configs.X`. Python finds them if the parent of
  their directory is on the path, which is not the directory of the command.
  """
  root = str(pathlib.Path(path).resolve().parent.parent)
  sys.path.append(root)
  try:
    yield
  except ConfigError:
    raise
  except (AttributeError, KeyError, TypeError, ImportError, SyntaxError) as e:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(e.__traceback__)
      if frame.filename == path
    ]
    where = f'{path}, line {lines[-1]}' if lines else path
    raise ConfigError(f'{where}: {_one_line(e)}') from e
  except ValueError as e:  # the recipe refuses its argument
    raise ConfigError(_one_line(e)) from e
  finally:
    sys.path.remove(root)


def _one_line(error: BaseException) -> str:
  """The message of an error on one line; ml_collections quotes newlines."""
  words = str(error).replace('\\n', ' ')
  if words[:1] in ('"', "'") and words[-1:] == words[:1]:
    words = words[1:-1]
  return ' '.join(words.split())


def split_flags(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Takes --config.KEY=VALUE out of a command line.

  As with absl's flags, one dash works as well as two, the value may be the next
  word, and a key of type bool needs no value.

  Args:
    argv: the words of a command line.

  Returns:
    The other words, and {key: text}; the last text of a key counts.

  Raises:
    ConfigError: a key has no value.
  """
  rest, overrides = [], {}
  words = list(argv)
  while words:
    word = words.pop(0)
    name, equals, text = word.lstrip('-').partition('=')
    if not word.startswith('-') or not name.startswith('config.'):
      rest.append(word)
      continue
    key = name.removeprefix('config.')
    if not equals:
      is_bool = isinstance(default_of(key), bool)
      follows = words[0].lower() if words else '--'
      if is_bool and follows not in TRUE + FALSE:
        text = 'true'
      elif follows.startswith('--') or (
        follows.startswith('-') and not follows[1:2].isdigit()
      ):
        raise ConfigError(
          f'--config.{key} has no value: write --config.{key}=VALUE'
        )
      else:
        text = words.pop(0)
    overrides[key] = text
  return rest, overrides


def override(config: Config, overrides: Mapping[str, Any]) -> None:
  """Sets keys of a config, and checks the types of the values.

  A text is read in the type of its key: 3e-4, 10_000, true, (0.1, 1.0). 'None',
  in upper or lower case, unsets a key that may be unset. Fields of the model
  are Python literals or plain words. Setting a length, such as run.steps,
  unsets the same length in other units (run.epochs, run.examples).

  Args:
    config: changed in place.
    overrides: {key: text or value}; texts come from a command line, values
      from a sweep.

  Raises:
    ConfigError: a key or a type is wrong, or one length is given in two units.
      The message is one line with the value, the nearest key, its type and its
      default.
  """
  given = {}
  for key, value in overrides.items():
    for group in DURATIONS:
      if key in group and convert(key, value) is not None:
        if group in given:
          raise ConfigError(
            f'{given[group]}={overrides[given[group]]} and {key}={value} both '
            'set the same length: give one of them'
          )
        given[group] = key
  for key, value in overrides.items():
    _set(config, key, value)
  load_model_module(config)
  for key, value in overrides.items():
    if key.startswith('model.'):
      _check_model_field(config, key, value)


def _set(config: Config, key: str, value: Any) -> None:
  if key.startswith('model.') and key not in _MODEL_KEYS:
    with config.ignore_type():
      config.model[key.removeprefix('model.')] = literal(value)
    return
  if key.startswith('eval.sets.'):
    _set_eval_set(config, key, value)
    return
  if key == 'data.image_size':
    _set_image_size(config, value)
    return
  converted = convert(key, value)
  for group in DURATIONS:
    if key in group and converted is not None:
      for other in group:
        _assign(config, other, get(default_config(), other))
  _assign(config, key, converted)


def _assign(config: Config, key: str, value: Any) -> None:
  section, _, name = key.rpartition('.')
  with config.ignore_type():  # `convert` has made the type right
    get(config, section)[name] = value


def _set_image_size(config: Config, value: Any) -> None:
  """Sets image_size, and for (height, width) also image_width."""
  given = literal(value)
  try:
    height, width = as_size(given)
  except (TypeError, ValueError) as e:
    raise ConfigError(
      f'data.image_size={value}: must be a whole number (int) of pixels, or '
      'two as (height, width); the default is '
      f'{default_config().data.image_size}'
    ) from e
  config.data.image_size = height
  config.data.image_width = None if isinstance(given, int) else width


def _set_eval_set(config: Config, key: str, value: Any) -> None:
  """Sets eval.sets.NAME.FIELD, and adds the set if it does not exist."""
  name, _, field = key.removeprefix('eval.sets.').rpartition('.')
  if not name or field not in EVAL_SET_KEYS:
    raise ConfigError(
      f'{key}={value}: a key of an eval set is eval.sets.NAME.FIELD with '
      f'FIELD one of {", ".join(EVAL_SET_KEYS)}'
    )
  with config.ignore_type():
    if name not in config.eval.sets:
      config.eval.sets[name] = ConfigDict()
    config.eval.sets[name][field] = str(value)


def model_field_types(name: str) -> dict[str, tuple[Any, Any]]:
  """{field: (annotation, default)} of a registered model that a recipe may set.

  The default is that of the registered variant, such as vit_b16's width.

  Raises:
    ValueError: there is no such model.
  """
  from vit_jax.models.registry import model_info

  info = model_info(name)
  variant = {**info.fields}
  result = {}
  for field in dataclasses.fields(info.module):
    if field.name not in ('parent', 'name', 'num_classes'):
      default = variant.get(field.name, field.default)
      if default is dataclasses.MISSING:
        default = None
      result[field.name] = (field.type, default)
  return result


def _check_model_field(config: Config, key: str, value: Any) -> None:
  """ConfigError if the model of a config has no such field."""
  field = key.removeprefix('model.')
  if key in _MODEL_KEYS:
    return
  try:
    fields = model_field_types(config.model.name)
  except ValueError as e:
    raise ConfigError(f'model.name={config.model.name!r}: {e}') from e
  if field not in fields:
    nearest = nearest_word(field, fields)
    annotation, default = fields[nearest]
    raise ConfigError(
      f'{key}={value}: {config.model.name} has no such field; the nearest is '
      f'model.{nearest}, {type_name(annotation)}; the default is {default!r}'
    )
