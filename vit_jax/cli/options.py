"""What several commands share: arguments, values, tables, output files."""

import contextlib
import os
import sys


def add_model_arguments(parser):
  """--model, --image-size and --set, of commands that load weights."""
  parser.add_argument(
    '--model',
    metavar='NAME',
    help='the model, for files that do not say it (vit-jax models)',
  )
  parser.add_argument(
    '--image-size',
    type=size,
    metavar='N',
    help="height and width, or HxW; default: the weights' own",
  )
  add_set_argument(parser)


def add_set_argument(parser):
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='FIELD=VALUE',
    help='a field of the model, e.g. --set pool=gap --set '
    "'area_sizes=((1, 2), (1, 2))'; may be repeated",
  )


def size(text: str):
  """'224' or '224x160' (height x width)."""
  height, _, width = text.partition('x')
  value = int(height), int(width or height)
  if min(value) < 1:
    raise ValueError
  return value if width else value[0]


def fields(assignments) -> dict:
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


def loading(args) -> dict:
  """Keyword arguments of `load_classifier` from the shared arguments."""
  return dict(
    model=args.model, image_size=args.image_size, fields=fields(args.set)
  )


def shape_text(shape) -> str:
  return 'x'.join(map(str, shape)) or 'scalar'


def table(rows, *, right=()) -> str:
  """Rows of strings in aligned columns; `right` are right-aligned ones."""
  rows = [[str(x) for x in row] for row in rows]
  if not rows:
    return ''
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  align = lambda x, i: x.rjust(widths[i]) if i in right else x.ljust(widths[i])
  return '\n'.join(
    '  '.join(align(x, i) for i, x in enumerate(row)).rstrip() for row in rows
  )


@contextlib.contextmanager
def output(path: str):
  """A text file that appears when complete; '-' is the standard output."""
  if path == '-':
    yield sys.stdout
    return
  partial = f'{path}.partial'
  try:
    with open(partial, 'w', newline='') as file:
      yield file
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)
