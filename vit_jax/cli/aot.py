"""Compiles a recipe's training step for a TPU slice, on any machine.

  vit-jax aot configs/vit_l16_i21k.py --topology v3:8x8
  vit-jax aot configs/vit_b16_i1k.py data.batch_size=2048 --topology v5e-64 \\
      --sweep

The report has the memory per device, the collectives, and an estimated time per
step. KEY=VALUE sets a key of the recipe. The exit code is 1 if the
recipe does not fit into the memory.
"""

import argparse
import itertools
import json
import sys
from typing import Any

from vit_jax.cli import options
from vit_jax.cli.train import add_recipe_arguments, settings

HELP = "compile a recipe's training step for a TPU, on any machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add_recipe_arguments(parser)
  parser.add_argument(
    '--topology',
    required=True,
    help='CHIP:GRID, such as v3:8x8 or v5e:8x8, or a slice of Google Cloud, '
    'such as v3-128 or v5e-64; several with commas',
  )
  parser.add_argument('--preset', help='sets mesh.preset; several with commas')
  parser.add_argument(
    '--batch-size', type=options.positive, help='sets data.batch_size'
  )
  parser.add_argument('--remat', help='sets model.remat; several with commas')
  parser.add_argument(
    '--scan', action=argparse.BooleanOptionalAction, help='sets model.scan'
  )
  parser.add_argument(
    '--sweep',
    action='store_true',
    help='a table of all presets (or those of --preset) and topologies',
  )
  parser.add_argument(
    '--effort',
    choices=('full', 'fast'),
    default='full',
    help='full (the default), or fast: compile quickly, for memory and '
    'collectives, without times',
  )
  parser.add_argument(
    '--eval',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='also compile the evaluation step (default)',
  )
  parser.add_argument(
    '--num-classes',
    type=int,
    help='number of classes, if the data is not on this machine',
  )
  parser.add_argument(
    '--num-examples',
    type=int,
    help='number of training images, if the data is not on this machine',
  )
  parser.add_argument(
    '--price-per-chip-hour',
    type=float,
    metavar='PRICE',
    help='price of a chip for an hour, in any currency, for the cost of a run',
  )
  parser.add_argument(
    '--json', action='store_true', help='print the report as JSON'
  )
  parser.add_argument(
    '--hlo', help='file to which the text of the compiled program is written'
  )


def run(args: argparse.Namespace) -> int:
  from vit_jax.aot.estimate import estimate
  from vit_jax.aot.report import describe, table
  from vit_jax.parallel.mesh import PRESETS
  from vit_jax.recipe.overrides import load_config

  keys = {**settings(args.settings), **args.keys}
  split = lambda text: text.split(',') if text else [None]
  presets = split(args.preset)
  if args.sweep and not args.preset:
    presets = PRESETS
  reports = []
  try:
    for topology, preset, remat in itertools.product(
      args.topology.split(','), presets, split(args.remat)
    ):
      config: Any = load_config(args.config, keys)
      if preset is not None:
        config.mesh.preset = preset
        if args.sweep:
          config.mesh.fsdp = config.mesh.tensor = -1
      if args.batch_size is not None:
        config.data.batch_size = args.batch_size
      for field, value in (('remat', remat), ('scan', args.scan)):
        if value is not None:
          config.model[field] = value
      print(f'compiling for {topology}, {config.mesh.preset}', file=sys.stderr)
      reports.append(
        estimate(
          config,
          topology,
          effort=args.effort,
          evaluation=args.eval,
          num_classes=args.num_classes,
          num_examples=args.num_examples,
          hlo=args.hlo,
        )
      )
      if args.price_per_chip_hour is not None:
        reports[-1]['price_per_chip_hour'] = args.price_per_chip_hour
        if 'chip_hours' in reports[-1]:
          reports[-1]['cost'] = (
            args.price_per_chip_hour * reports[-1]['chip_hours']
          )
      if not args.json and not args.sweep:
        print(describe(reports[-1]))
  except (ValueError, RuntimeError, KeyError, TypeError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  if args.json:
    print(json.dumps(reports if len(reports) > 1 else reports[0], indent=2))
  elif args.sweep or len(reports) > 1:
    print(table(reports))
  if args.sweep:
    return 0 if any(r['fits'] for r in reports) else 1
  return 0 if all(r['fits'] for r in reports) else 1
