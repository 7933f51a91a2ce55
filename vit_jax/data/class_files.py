"""Reads files of class names, in the order of the outputs of a model.

a name a line          cat
numbered lines         0,cat   or   0: 'cat',   or   0 cat
a list of JSON         ["cat", "dog"]
objects of JSON        {"0": "cat"}, {"0": ["n02123045", "cat"]}, {"cat": 0}
"""

import json
import os
import re
from typing import Any

from vit_jax.data.label_table import decode_text
from vit_jax.files import as_path, check_regular

_NUMBERED = re.compile(r"\{?\s*(\d+)\s*([,;:\t ])\s*(['\"]?)(.*?)\3,?\s*\}?")


def read_class_names(path: str | os.PathLike) -> list[str]:
  """The class names in a file.

  Args:
    path: of a text or JSON file, in UTF-8, UTF-16 or Latin-1.

  Raises:
    ValueError: it has no names, or numbers that are not 0, 1, 2 and so on.
    OSError: it cannot be read.
  """
  path = as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such file')
  check_regular(path)
  try:
    names = _names(decode_text(path)[0])
  except json.JSONDecodeError as e:
    raise ValueError(f'{path} is not JSON: {e}') from e
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  if not names:
    raise ValueError(f'{path} has no class names')
  return names


def _names(text: str) -> list[str]:
  first = text.lstrip()[:1]
  if first == '[':
    return [_name(value) for value in json.loads(text)]
  if re.match(r'\s*\{\s*"', text):
    values = json.loads(text)
    if all(type(value) is int for value in values.values()):
      return _in_order({value: name for name, value in values.items()}, values)
    if not all(map(str.isdecimal, values)):
      raise ValueError('its keys are not the numbers of classes')
    numbered = {int(key): _name(value) for key, value in values.items()}
    return _in_order(numbered, values)
  lines = [x.strip() for x in text.splitlines() if x.strip(' \t{}\r')]
  # Numbered lines may have a title.
  titled = len(lines) > 2 and re.fullmatch(r'[^\W\d]\w*[,;\t]\w+', lines[0])
  matches = [_NUMBERED.fullmatch(line) for line in lines[bool(titled) :]]
  rows = [match for match in matches if match]
  separators = {match[2] for match in rows}
  if len(rows) < len(matches) or len(separators) != 1:
    return lines
  numbered = {int(match[1]): match[4].strip() for match in rows}
  if separators == {' '} and numbered.keys() != set(range(len(rows))):
    return lines  # names that begin with a number
  return _in_order(numbered, rows)


def _name(value: Any) -> str:
  """The name of a class; of several, as WordNet's number and name, the last."""
  if isinstance(value, list) and value:
    value = value[-1]
  if not isinstance(value, str | int):
    raise ValueError(f'{value!r} is no class name')
  return str(value)


def _in_order(numbered: dict[int, str], rows: Any) -> list[str]:
  if numbered.keys() != set(range(len(rows))):
    raise ValueError(
      f'its classes are numbered {min(numbered)} to {max(numbered)}, and there '
      f'are {len(rows)} names: number them from 0, each once'
    )
  return [numbered[i] for i in range(len(numbered))]
