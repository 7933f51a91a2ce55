"""Lists the models with their size, cost and released files.

  vit-jax models 'vit_b*'
  vit-jax models --table models.md --throughput --plot models.png

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
  parser.add_argument(
    '--table',
    metavar='FILE',
    help='write a Markdown table with the published results',
  )
  parser.add_argument(
    '--plot',
    metavar='FILE',
    help='draw accuracy against images per second, as PNG',
  )
  parser.add_argument(
    '--throughput',
    action='store_true',
    help='measure the images per second of every model on this machine',
  )
  parser.add_argument(
    '--batch-size',
    type=int,
    default=8,
    metavar='N',
    help='batch size of --throughput (8)',
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference import describe
  from vit_jax.models.registry import list_models

  names = list_models(args.pattern)
  if not names:
    raise ValueError(
      f'no model matches {args.pattern!r}; vit-jax models '
      'without a pattern lists all'
    )
  if args.table or args.plot:
    _compare(args)
    return
  if args.throughput:
    raise ValueError('--throughput needs --table=FILE or --plot=FILE')
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


def _compare(args: argparse.Namespace) -> None:
  """Writes the table and the plot, and reports progress to stderr."""
  import sys

  import jax

  from vit_jax.analysis import comparison
  from vit_jax.files import write_atomically

  if args.batch_size < 1:
    raise ValueError(f'--batch-size={args.batch_size}: must be at least 1')
  rows = list(
    comparison.compare(
      args.pattern,
      throughput=args.throughput,
      batch_size=args.batch_size,
      report=lambda line: print(line, file=sys.stderr, flush=True),
    )
  )
  device = ''
  if args.throughput:
    device = f'{jax.devices()[0].device_kind}, batch {args.batch_size}'
  if args.table:
    text = comparison.markdown(rows, device)
    write_atomically(args.table, text)
    print(f'wrote {args.table}: {len(rows)} rows')
  if args.plot:
    print(f'wrote {comparison.plot(rows, args.plot, device)}')
