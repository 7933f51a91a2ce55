"""Reads the values of keys from text, in the type of the key's default."""

import ast
from collections.abc import Iterable
import difflib
import types
import typing
from typing import Any

from ml_collections import ConfigDict

from vit_jax.recipe.keys import ConfigError, default_config
from vit_jax.recipe.sections import Config

NONE = ('', 'none', 'null')  # texts that unset a key, in any case
TRUE, FALSE = ('true', 'yes', '1'), ('false', 'no', '0')


def convert(key: str, value: Any) -> Any:
  """`value` in the type of a key of the recipe (not of a model's field).

  Args:
    key: such as 'optim.lr'.
    value: a text, or a Python value of the type.

  Raises:
    ConfigError: there is no such key, or the value has another type. The
      message names the type and the default.
  """
  parent, name = _find_default(key)
  if parent is None:
    raise ConfigError(f'{key}={value}: {_no_such_key(key)}')
  default, kind = parent[name], parent.get_type(name)
  if default is None and (value is None or is_text(value, NONE)):
    return None
  try:
    return _read(value, kind)
  except (ValueError, SyntaxError, TypeError, OverflowError) as e:
    raise ConfigError(
      f'{key}={value}: must be {_describe(kind, default)}'
    ) from e


def literal(value: Any) -> Any:
  """The value of a Python literal, such as '(1, 2)'; else the text itself."""
  if not isinstance(value, str):
    return value
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return {'true': True, 'false': False}.get(value.lower(), value)


def is_text(value: Any, words: Iterable[str]) -> bool:
  """Whether a value is one of some words, in upper or lower case."""
  return isinstance(value, str) and value.strip().lower() in words


def _read(value: Any, kind: type) -> Any:
  """`value` as `kind`; ValueError, SyntaxError or TypeError if it is not."""
  text = value.strip() if isinstance(value, str) else None
  if kind is str and isinstance(value, str):
    return value
  if kind is bool:
    if isinstance(value, bool):
      return value
    if is_text(value, TRUE + FALSE):
      return is_text(value, TRUE)
  elif kind is float and not isinstance(value, bool):
    return float(value)
  elif kind is int and not isinstance(value, bool):
    number = float(value)
    if number == int(number):  # 1e4 is a whole number too
      return int(value) if text is None or text.isdigit() else int(number)
  elif kind in (tuple, list):
    value = value if text is None else ast.literal_eval(text)
    if isinstance(value, (tuple, list)):
      return tuple(value)
  elif kind is ConfigDict:
    value = value if text is None else ast.literal_eval(text)
    return ConfigDict(value)
  raise TypeError(f'{value!r} is not {kind}')


_TYPES = {
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  bool: 'true or false',
  tuple: 'a tuple such as (1, 2)',
  ConfigDict: 'a dictionary',
}


def _describe(kind: type | None, default: Any) -> str:
  """A type and a default in words: 'a number (float); the default is 0.001'."""
  words = _TYPES.get(kind, 'a value')
  name = f' ({kind.__name__})' if kind in (int, float, str, bool) else ''
  none = ' or None' if default is None else ''
  if isinstance(default, ConfigDict):
    default = default.to_dict()
  return f'{words}{none}{name}; the default is {default!r}'


def describe_default(section: str, name: str) -> str:
  """What the value of a key must be, and its default."""
  keys = default_config()[section]
  return _describe(keys.get_type(name), keys[name])


def default_of(key: str) -> Any:
  """The default of a key; None if there is no such key."""
  parent, name = _find_default(key)
  return None if parent is None else parent[name]


def _find_default(key: str) -> tuple[Config | None, str]:
  """The section of the default config that has a key, and its name there."""
  *sections, name = key.split('.')
  parent = default_config()
  for section in sections:
    parent = parent.get(section)
    if not isinstance(parent, ConfigDict):
      return None, name
  return (parent, name) if sections and name in parent else (None, name)


def nearest_word(word: str, words: Iterable[str]) -> str:
  """The word most like `word`; 'lr' also counts as like 'learning_rate'."""
  initials = lambda text: ''.join(w[0] for w in text.split('_') if w)

  def likeness(other: str) -> float:
    if other in (initials(word), word) or initials(other) == word:
      return 1.0
    return difflib.SequenceMatcher(None, word, other).ratio()

  return max(words, key=likeness)


def _no_such_key(key: str) -> str:
  """The message about an unknown key: the nearest one, its type and default."""
  defaults = default_config()
  section, _, name = key.partition('.')
  if section in defaults and not name:
    return f'{section} is a section: set one of its keys, {section}.KEY=VALUE'
  if section not in defaults:
    section = nearest_word(section, defaults)
  keys = defaults[section]
  nearest = nearest_word(name or section, keys)
  if section == 'model':
    return (
      f'there is no such key; the nearest section is model, with the name of '
      f'the model (model.name, a text, by default {keys.name!r}) and fields of '
      'its class'
    )
  described = describe_default(section, nearest)
  return (
    f'there is no such key; the nearest is {section}.{nearest}, {described}'
  )


def type_name(annotation: Any) -> str:
  """A type as it is written in the source: 'int | None'."""
  if isinstance(annotation, type) and not hasattr(annotation, '__args__'):
    return annotation.__name__
  return str(annotation).replace('typing.', '')


def fits_annotation(value: Any, annotation: Any) -> bool:
  """Whether a value has an annotated type; True if that cannot be checked."""
  origin = typing.get_origin(annotation)
  if origin in (types.UnionType, typing.Union):
    return any(fits_annotation(value, a) for a in typing.get_args(annotation))
  if annotation in (None, types.NoneType):
    return value is None
  if annotation is bool or annotation is str:
    return isinstance(value, annotation)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if annotation is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if annotation is tuple or origin is tuple:
    return isinstance(value, tuple | list)
  return True
