"""Draws accuracy against data, compute, parameters or throughput of runs.

  vit-jax figures runs/scaling -o scaling.png
  vit-jax figures runs/a runs/b --quantity compute -o scaling.svg

Each finished run is a point, whose numbers its summary.json tells; runs of one
model are joined by a line. The figures of one model (attention distance,
similarity of layers and positions, filters, rollout) are those of vit-jax
attention. Both write .png, .svg or .pdf.
"""

import argparse
import dataclasses
import json

from vit_jax.cli import options

HELP = 'draw accuracy against data or compute of runs'
OPTIONS = {'quantity=': '--quantity ', 'eval_set': '--eval-set'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdirs_argument(parser)
  parser.add_argument(
    '-o',
    '--output',
    required=True,
    metavar='FILE',
    help='.png, .svg or .pdf file to write',
  )
  parser.add_argument(
    '--quantity',
    default='data',
    choices=('data', 'compute', 'parameters', 'throughput'),
    help='horizontal axis: number of training images (data, the default), '
    'GFLOPs of the whole training (compute), parameters, or images/s '
    '(throughput)',
  )
  parser.add_argument(
    '--eval-set',
    default='',
    metavar='NAME',
    help="eval set of the accuracy; default: each run's first",
  )
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.report.runs import read_runs
  from vit_jax.report.scaling import plot_scaling, points

  data = points(read_runs(args.workdirs), args.eval_set)
  plot_scaling(data, args.output, quantity=args.quantity)
  if args.json:
    print(json.dumps([dataclasses.asdict(point) for point in data]))
  else:
    print(f'wrote {args.output}: {len(data)} runs')
