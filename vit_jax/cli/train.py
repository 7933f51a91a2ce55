"""Trains and evaluates a recipe, as `python -m vit_jax.main` does.

  vit-jax train configs/digits.py --workdir runs/digits
  vit-jax train configs/vit_s16_i1k.py optim.lr=3e-4 data.dir=TFDS_DIR \\
      --workdir runs/s16
  vit-jax train configs/digits.py --workdir runs/digits --more-epochs 20
  vit-jax train configs/digits.py --dry-run --show-batch batch.png

KEY=VALUE sets a key of the recipe. A stopped run continues when the same
command is started again.
"""

import argparse
from collections.abc import Sequence

from vit_jax.cli import options

HELP = 'train a recipe (configs/X.py)'
OPTIONS = {'run.extend': '--more-epochs'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add_recipe_arguments(parser)
  add_workdir_argument(parser, required=False)
  options.add_more_epochs_argument(parser)
  options.add_preview_arguments(parser)
  options.add_json_argument(parser)
  parser.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='of process 0, if it is not detected',
  )
  parser.add_argument(
    '--num-processes',
    type=int,
    metavar='N',
    help='number of processes, if it is not detected',
  )
  parser.add_argument(
    '--process-id',
    type=int,
    metavar='N',
    help='number of this process, from 0, if it is not detected',
  )


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
  """The recipe and its keys."""
  parser.add_argument(
    'config', metavar='CONFIG[:ARG]', help='recipe: configs/X.py[:ARG]'
  )
  parser.add_argument(
    'settings',
    nargs='*',
    default=[],  # without it, argparse requires a word
    metavar='KEY=VALUE',
    help='keys of the recipe, such as optim.lr=3e-4',
  )


def add_workdir_argument(
  parser: argparse.ArgumentParser, required: bool = True
) -> None:
  """Adds --workdir, of commands that train a recipe."""
  parser.add_argument(
    '--workdir',
    required=required,
    metavar='DIR',
    help='directory for checkpoints, metrics and the summary',
  )


def run(args: argparse.Namespace) -> int:
  if not args.workdir and not args.dry_run:
    raise ValueError('give the directory of the run: --workdir DIR')
  from absl import logging

  from vit_jax import main

  logging.use_absl_handler()  # as absl's app.run does for vit_jax.main
  return main.run(args, {**settings(args.settings), **args.keys})


def settings(words: Sequence[str]) -> dict[str, str]:
  """{key: text} of the words KEY=VALUE."""
  result = {}
  for word in words:
    key, equals, value = word.partition('=')
    if not equals or not key:
      raise ValueError(
        f'{word}: must have the form KEY=VALUE, such as optim.lr=3e-4'
      )
    result[key.removeprefix('--config.')] = value
  return result
