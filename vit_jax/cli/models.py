"""Lists the models with their size, cost and released files.

GFLOPs are 1e9 multiply-accumulates of one forward pass at the model's image
size, as papers count them.
"""

import argparse
import json

from vit_jax import text

HELP = 'list models: parameters, GFLOPs, released files'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'pattern',
    nargs='?',
    default='*',
    help="shell pattern, such as 'vit_b*'; 'vit' means 'vit*'",
  )
  parser.add_argument('--json', action='store_true', help='as JSON')


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference import describe
  from vit_jax.models.registry import list_models

  names = list_models(args.pattern)
  if not names:
    raise ValueError(
      f'no model matches {args.pattern!r}; vit-jax models '
      'without a pattern lists all'
    )
  if args.json:
    print(json.dumps(list(describe.describe_models(args.pattern)), indent=2))
    return
  # A row is printed as soon as its model is measured, so the widths of columns
  # are chosen before the rows are known.
  width = max(map(len, names))
  print(
    f'{"model":{width}}  {"parameters":>13}  {"GFLOPs":>8}  {"px":>7}  '
    'released files'
  )
  for row in describe.describe_models(args.pattern):
    files = ', '.join(row['released'][:2])
    more = len(row['released']) - 2
    role = f'[{row["role"]}] ' if row['role'] else ''
    print(
      f'{row["name"]:{width}}  {row["parameters"]:13,}  '
      f'{row["gmacs"]:8.2f}  {text.shape(row["image_size"]):>7}  {role}{files}'
      f'{f" and {more} more" if more > 0 else ""}'.rstrip(),
      flush=True,
    )
