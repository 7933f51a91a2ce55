"""Arguments that several commands share, and how their values are read."""

import argparse
from collections.abc import Iterable
from typing import Any

from vit_jax.preprocessing import as_size


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  """--model, --module, --image-size and --set: how to load weights."""
  parser.add_argument(
    '--model',
    metavar='NAME',
    help='the model, for files that do not say it (vit-jax models)',
  )
  add_module_argument(parser)
  parser.add_argument(
    '--image-size',
    type=size,
    metavar='N',
    help="height and width, or HxW; default: the weights' own",
  )
  add_set_argument(parser)


def add_module_argument(parser: argparse.ArgumentParser) -> None:
  """--module, of commands that take a model by its name."""
  parser.add_argument(
    '--module',
    default='',
    metavar='NAME',
    help='a Python module of your own that registers the model',
  )


def add_set_argument(parser: argparse.ArgumentParser) -> None:
  """--set, of commands that build a model."""
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='FIELD=VALUE',
    help='a field of the model, e.g. --set pool=gap --set '
    "'area_sizes=((1, 2), (1, 2))'; may be repeated",
  )


def size(text: str) -> tuple[int, int]:
  """(height, width) of '224', a square, or of '224x160', height x width."""
  height, x, width = text.partition('x')
  try:
    return as_size((int(height), int(width if x else height)))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is no image size: give pixels, such as 224, or height x '
      'width, such as 224x160'
    ) from None


def fields(assignments: Iterable[str]) -> dict[str, Any]:
  """['pool=gap', 'depth=4'] -> {'pool': 'gap', 'depth': 4}."""
  if not assignments:
    return {}
  from vit_jax.recipe.values import literal

  result = {}
  for text in assignments:
    key, equals, value = text.partition('=')
    if not equals or not key:
      raise ValueError(f'--set {text}: the form is FIELD=VALUE')
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
