"""Uploads the weights of a run with a model card to the Hugging Face hub.

  vit-jax push runs/flowers --repo ORG/flowers -o flowers
  vit-jax push runs/flowers --repo ORG/flowers -o flowers --private

First the folder is written as by vit-jax card. Without a network, a login or
the package huggingface_hub it is complete all the same; the error says how to
upload it later.
"""

import argparse

from vit_jax.cli.card import add_folder_arguments

HELP = 'upload a run to the Hugging Face hub'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('workdir', metavar='WORKDIR', help='workdir of the run')
  parser.add_argument(
    '--repo', required=True, metavar='ORG/NAME', help='entry of the hub'
  )
  add_folder_arguments(parser)
  parser.add_argument(
    '--private', action='store_true', help='make a new entry private'
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.report.card import write_card
  from vit_jax.weights.hub import upload

  if args.repo.count('/') != 1 or not all(args.repo.split('/')):
    raise ValueError(f'--repo {args.repo}: must have the form ORG/NAME')
  names = write_card(
    args.workdir, args.output, repo=args.repo, license_name=args.license
  )
  print(f'wrote {args.output}: {", ".join(names)}')
  print(f'uploaded: {upload(args.output, args.repo, private=args.private)}')
