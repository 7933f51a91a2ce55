"""Checks every checkpoint step of a workdir against its checksums.

  vit-jax verify runs/flowers
  vit-jax verify runs/flowers/checkpoints/500

Each array of each step is read and compared with the checksums that were
computed when it was written. Nothing is changed. The exit code is 1 if a step
is damaged.
"""

import argparse
import json

from vit_jax.cli import options

HELP = 'check the checkpoints of a workdir'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('workdir', help='workdir of a run, or one of its steps')
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
  from vit_jax.weights import verify

  states = verify.verify(args.workdir)
  damaged = [state for state in states if not state.sound]
  if args.json:
    steps = [
      {'step': str(x.path), 'sound': x.sound, 'description': x.description}
      for x in states
    ]
    print(json.dumps(steps, indent=2))
    return 1 if damaged else 0
  for state in states:
    print(f'{state.path}: {state.description}')
  unchecked = [x for x in states if x.sound and not x.has_checksums]
  print(
    f'{len(states)} steps, {len(damaged)} damaged'
    + (f', {len(unchecked)} without checksums' if unchecked else '')
  )
  return 1 if damaged else 0
