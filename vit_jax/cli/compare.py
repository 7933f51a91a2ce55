"""Compares runs in one table: what differs, results, speed.

  vit-jax compare runs/a runs/b
  vit-jax compare runs -o runs.md

A folder stands for all workdirs in it. -o writes the table as Markdown (.md) or
CSV (.csv).
"""

import argparse
import json

from vit_jax.cli import options

HELP = 'compare runs in a table'
_ENDINGS = {'.md': 'to_markdown', '.csv': 'to_csv'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdirs_argument(parser)
  parser.add_argument(
    '-o', '--output', metavar='FILE', help='.md or .csv file to write'
  )
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.files import as_path, write_atomically
  from vit_jax.report import table
  from vit_jax.report.runs import read_runs

  path = as_path(args.output) if args.output else None
  if path is not None and path.suffix not in _ENDINGS:
    raise ValueError(f'{path}: the name must end with {" or ".join(_ENDINGS)}')
  columns = table.columns(read_runs(args.workdirs))
  if args.json:
    rows = [dict(zip(columns, row, strict=True)) for row in table.rows(columns)]
    print(json.dumps(rows, indent=2))
  else:
    print(table.to_text(columns))
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, getattr(table, _ENDINGS[path.suffix])(columns))
