"""Writes a model card beside the exported weights of a run.

  vit-jax card runs/flowers -o flowers
  vit-jax card runs/flowers -o flowers --license apache-2.0

The folder gets README.md in the format of the Hugging Face hub (data, recipe,
results, limits, how to use), recipe.json and model.safetensors.
"""

import argparse

HELP = 'write a model card and the weights of a run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('workdir', metavar='WORKDIR', help='workdir of the run')
  add_folder_arguments(parser)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --output and --license, which push has as well."""
  parser.add_argument(
    '-o', '--output', required=True, metavar='DIR', help='folder to write'
  )
  parser.add_argument(
    '--license',
    default='',
    metavar='NAME',
    help='license of the weights, such as apache-2.0; default: none is named',
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.report.card import write_card

  names = write_card(args.workdir, args.output, license_name=args.license)
  print(f'wrote {args.output}: {", ".join(names)}')
