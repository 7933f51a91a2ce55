"""Draws accuracy against data, compute, parameters or throughput of runs.

  vit-jax figures runs/scaling -o scaling.png
  vit-jax figures runs/a runs/b --quantity compute --metric 10-shot -o s.svg
  vit-jax figures runs/a runs/b --curves -o curves.png
  vit-jax figures runs/d3 --positions --metric 5-shot -o d3.png

Each finished run is a point, whose numbers its summary.json tells; runs of one
model are joined by a line. --metric takes what an ablation measured, such as a
few-shot accuracy, and --quantity any number of the recipe, such as model.width.
--curves draws loss, accuracy, learning rate and speed during the training;
--positions the table of position embeddings of ViT. The figures of one model
(attention distance, similarity of layers and positions, filters, rollout) are
those of vit-jax attention. Both write .png, .jpg, .svg or .pdf.
"""

import argparse
import dataclasses
import json
import math

from vit_jax.cli import options

HELP = 'draw accuracy against data or compute of runs'
OPTIONS = {
  'quantity=': '--quantity ',
  'eval_set': '--eval-set',
  'horizontal=': '--horizontal ',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdirs_argument(parser)
  parser.add_argument(
    '-o',
    '--output',
    required=True,
    metavar='FILE',
    help='.png, .jpg, .svg or .pdf file to write',
  )
  kinds = parser.add_mutually_exclusive_group()
  kinds.add_argument(
    '--curves',
    action='store_true',
    help='learning curves instead of accuracy against a quantity',
  )
  kinds.add_argument(
    '--positions',
    action='store_true',
    help='the table of position embeddings (ViT, appendix D.4), with the '
    "paper's numbers",
  )
  parser.add_argument(
    '--quantity',
    default='data',
    metavar='NAME',
    help='horizontal axis: number of training images (data, the default), '
    'GFLOPs of the whole training (compute), parameters, images/s '
    '(throughput), or a key of the recipe such as model.width',
  )
  parser.add_argument(
    '--metric',
    default='',
    metavar='NAME',
    help='vertical axis: a column that an ablation measured, such as 10-shot; '
    'default: accuracy',
  )
  parser.add_argument(
    '--horizontal',
    default='step',
    choices=('step', 'epoch', 'hours'),
    help='horizontal axis of --curves (step)',
  )
  parser.add_argument(
    '--eval-set',
    default='',
    metavar='NAME',
    help="eval set of the accuracy; default: each run's first",
  )
  options.add_dpi_argument(parser)
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.analysis.plots import set_dpi
  from vit_jax.report import charts, curves, scaling
  from vit_jax.report.runs import read_runs

  set_dpi(args.dpi)
  runs = read_runs(args.workdirs)
  if args.curves:
    curves.plot_curves(runs, args.output, horizontal=args.horizontal)
    numbers = [
      {key: x[key] for key in ('title', 'unit', 'rows')}
      for x in charts.curves(runs)
    ]
  elif args.positions:
    table = scaling.position_table(runs, args.metric, args.eval_set)
    scaling.plot_positions(table, args.output)
    numbers = {
      'metric': table.metric,
      'cells': [
        {'posemb': scheme, 'posemb_at': place, 'value': value}
        for row, scheme in zip(table.measured, table.schemes, strict=True)
        for value, place in zip(row.tolist(), table.places, strict=True)
        if not math.isnan(value)
      ],
    }
  else:
    data = scaling.points(
      runs, args.eval_set, metric=args.metric, quantity=args.quantity
    )
    scaling.plot_scaling(data, args.output, quantity=args.quantity)
    numbers = [dataclasses.asdict(point) for point in data]
  if args.json:
    print(json.dumps(numbers))
  else:
    count = len(runs)
    print(f'wrote {args.output}: {count} run{"s" * (count != 1)}')
