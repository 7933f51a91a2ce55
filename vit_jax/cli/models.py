"""Lists the models with their size, cost and released files.

  vit-jax models 'vit_b*'
  vit-jax models mixer --json
  vit-jax models --table models.md --throughput --plot models.png

A line has as many released files as fit into it; --json has all. GFLOPs are 1e9
multiply-accumulates of one forward pass at the model's image size, as papers
count them.
"""

import argparse
from collections.abc import Sequence
import json
from typing import Any

from vit_jax import text
from vit_jax.cli import options

HELP = 'list models: parameters, GFLOPs, released files'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'pattern',
    nargs='?',
    default='*',
    help="shell pattern, such as 'vit_b*'; 'vit' means 'vit*'; default: all",
  )
  options.add_json_argument(parser)
  parser.add_argument(
    '--table',
    metavar='FILE',
    help='write a Markdown table with the published results',
  )
  parser.add_argument(
    '--plot',
    metavar='FILE',
    help='draw accuracy against images per second: .png, .jpg, .svg or .pdf',
  )
  parser.add_argument(
    '--throughput',
    action='store_true',
    help='measure the images per second of every model on this machine; those '
    'that the table has for this device are kept',
  )
  options.add_batch_argument(parser, 8)


def run(args: argparse.Namespace) -> None:
  from vit_jax.models.catalog import catalog, matching

  rows = [catalog()[name] for name in matching(catalog(), args.pattern)]
  if not rows:
    raise ValueError(
      f'no model matches {args.pattern!r}; vit-jax models '
      'without a pattern lists all'
    )
  if args.table or args.plot:
    _check_names(args)
    _compare(args)
    return
  if args.throughput:
    raise ValueError('--throughput needs --table=FILE or --plot=FILE')
  if args.json:
    print(json.dumps(rows, indent=2))
    return
  width = max(len(row['name']) for row in rows)
  print(
    f'{"model":{width}}  {"parameters":>13}  {"GFLOPs":>7}  {"px":>7}  '
    'released files'
  )
  for row in rows:
    print(_line(row, width))


def _check_names(args: argparse.Namespace) -> None:
  """ValueError for the name of a file that cannot be written."""
  from vit_jax.analysis.plots import check_format

  if args.plot:
    check_format(args.plot)
  if args.table and not args.table.endswith('.md'):
    raise ValueError(
      f'--table {args.table}: the name of the table must end with .md'
    )


def _line(row: dict[str, Any], width: int) -> str:
  """A line of the list, which is as wide as the terminal at most."""
  role = f'[{row["role"]}] ' if row['role'] else ''
  start = (
    f'{row["name"]:{width}}  {row["parameters"]:13,}  {row["gmacs"]:7.2f}  '
    f'{text.shape(row["image_size"]):>7}  {role}'
  )
  files = _as_many_as_fit(row['released'], text.line_width() - len(start))
  return (start + files).rstrip()


def _as_many_as_fit(names: Sequence[str], width: int) -> str:
  """'a, b and 3 more': the first names, in `width` columns."""
  for count in range(len(names), 0, -1):
    more = f' and {len(names) - count} more' if count < len(names) else ''
    line = ', '.join(names[:count]) + more
    if len(line) <= width:
      return line
  more = f' and {len(names) - 1} more' if len(names) > 1 else ''
  beginning = width - len(more) - len('...')
  return f'{names[0][:beginning]}...{more}' if beginning > 0 and names else ''


def _compare(args: argparse.Namespace) -> None:
  """Writes the table and the plot, and reports progress to stderr."""
  import sys

  import jax

  from vit_jax.analysis import comparison
  from vit_jax.files import as_path, write_atomically

  device, speeds = '', {}
  if args.throughput:
    device = f'{jax.devices()[0].device_kind}, batch {args.batch_size}'
    if args.table:
      speeds = comparison.read_speeds(args.table, device)
  if speeds:
    print(f'{args.table}: has {len(speeds)} speeds, which are kept')
  elif args.throughput and args.table and as_path(args.table).exists():
    text.note(f'{args.table} has no speeds of {device}, and is replaced')
  rows = []
  for row in comparison.compare(
    args.pattern,
    throughput=args.throughput,
    batch_size=args.batch_size,
    speeds=speeds,
    report=lambda line: print(line, file=sys.stderr, flush=True),
  ):
    rows.append(row)
    is_new = row.speed and (row.name, row.size) not in speeds
    if args.table and is_new:  # a stopped command goes on from here
      write_atomically(args.table, comparison.markdown(rows, device))
  if args.table:
    write_atomically(args.table, comparison.markdown(rows, device))
    print(f'wrote {args.table}: {len(rows)} rows')
  if args.plot:
    print(f'wrote {comparison.plot(rows, args.plot, device)}')
