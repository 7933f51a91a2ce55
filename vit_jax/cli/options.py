"""Arguments that several commands share, and functions that read them."""

import argparse
from collections.abc import Iterable, Mapping
import re
from typing import Any

from vit_jax.preprocessing import as_size


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --model, --module, --image-size and --set, for loading weights."""
  parser.add_argument(
    '--model',
    metavar='NAME',
    help='name of the model, if the weights do not name it; vit-jax models '
    'lists the names',
  )
  add_module_argument(parser)
  parser.add_argument(
    '--image-size',
    type=size,
    metavar='N',
    help="pixels, N or HxW; default: the weights' own",
  )
  add_set_argument(parser)


def add_module_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --module, for commands that take the name of a model."""
  parser.add_argument(
    '--module',
    default='',
    metavar='NAME',
    help='Python module of your own that registers the model',
  )


def add_set_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --set, for commands that build a model."""
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='FIELD=VALUE',
    help='set a field of the model, such as --set pool=gap or --set '
    "'area_sizes=((1, 2), (1, 2))'; may be repeated",
  )


def size(text: str) -> tuple[int, int]:
  """Reads '224' (a square) or '224x160' (height x width) as (height, width)."""
  height, x, width = text.partition('x')
  try:
    return as_size((int(height), int(width if x else height)))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is no image size: give pixels, such as 224, or height x '
      'width, such as 224x160'
    ) from None


def fields(assignments: Iterable[str]) -> dict[str, Any]:
  """Reads ['pool=gap', 'depth=4'] as {'pool': 'gap', 'depth': 4}."""
  if not assignments:
    return {}
  from vit_jax.recipe.values import literal

  result = {}
  for text in assignments:
    key, equals, value = text.partition('=')
    if not equals or not key:
      raise ValueError(f'--set {text}: must have the form FIELD=VALUE')
    result[key] = literal(value)
  return result


def loading(args: argparse.Namespace) -> dict[str, Any]:
  """Keyword arguments of `load_classifier` from the shared arguments."""
  return {
    'model': args.model,
    'module': args.module,
    'image_size': args.image_size,
    'fields': fields(args.set),
  }


def in_options(message: str, options: Mapping[str, str]) -> str:
  """Writes an error message in the words of a command.

  Errors name the keys of a recipe ('data.batch_size=0') or the arguments of a
  function ('shards=0'). The user of a command knows neither, but its options.

  Args:
    message: the error message.
    options: {key or argument: option}, such as {'data.batch_size': '--batch'}.
      A key that ends with '.' or '=' stands for all words that go on like it.

  Returns:
    The message with options in place of keys and arguments.
  """
  ends = {'.': r'(?=\w)', '=': ''}
  patterns = [
    re.escape(key) + ends.get(key[-1], r'(?!\w|\.\w)')
    for key in sorted(options, key=len, reverse=True)
  ]
  if not patterns:
    return message
  return re.sub(
    rf'(?<![\w.-])(?:--config\.)?({"|".join(patterns)})',
    lambda match: options[match[1]],
    message,
  )
