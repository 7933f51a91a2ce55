"""Runs the variants of a recipe, as `python -m vit_jax.ablate` does.

  vit-jax ablate configs/posemb_d3.py --workdir runs/d3 --seeds 3
  vit-jax ablate configs/deit_cifar10.py data.dir=TFDS_DIR --jobs 2 \\
      --workdir runs/deit

KEY=VALUE sets a key of every variant. Finished runs are skipped when the same
command is started again. The table is printed and written to
DIR/ablation.md.
"""

import argparse

from vit_jax.cli import options
from vit_jax.cli.train import (
  add_recipe_arguments,
  add_workdir_argument,
  settings,
)

HELP = 'run the variants of a recipe, and write a table of their results'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add_recipe_arguments(parser)
  add_workdir_argument(parser)
  parser.add_argument(
    '--seeds',
    type=options.positive,
    default=3,
    metavar='N',
    help='number of runs of each variant (3)',
  )
  parser.add_argument(
    '--jobs',
    type=options.positive,
    default=1,
    metavar='N',
    help='number of runs at a time, on a CPU (1)',
  )
  parser.add_argument(
    '--variants',
    type=lambda names: names.split(','),
    metavar='NAMES',
    help='only these, separated by commas',
  )


def run(args: argparse.Namespace) -> int:
  from absl import logging

  from vit_jax import ablate

  logging.use_absl_handler()  # as absl's app.run does for vit_jax.ablate
  values = argparse.Namespace(
    config=args.config,
    workdir=args.workdir,
    seeds=args.seeds,
    jobs=args.jobs,
    variants=args.variants,
    run=None,  # all runs of the plan
  )
  return ablate.run(values, {**settings(args.settings), **args.keys})
