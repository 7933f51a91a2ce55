"""Stores the logits of a teacher for all training images, for distillation.

  vit-jax teacher-logits runs/teacher --source folder --data-dir flowers -o
  LOGITS

A recipe uses them with loss.teacher_weights=LOGITS.
"""

import argparse

from vit_jax.cli import options

HELP = 'store the logits of a teacher, for distillation'
OPTIONS = {
  'data.match_classes': '--match-classes',
  'data.flat=True': '--flat',
  'data.source': '--source',
  'data.dir': '--data-dir',
  'data.split': '--split',
  'data.holdout': '--holdout',
  'eval.batch_size': '--batch-size',
  'data.threads': '--threads',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('weights', help='the teacher: a workdir or file')
  parser.add_argument(
    '-o', '--output', required=True, metavar='DIR', help='directory to write'
  )
  parser.add_argument(
    '--source',
    required=True,
    help='data.source of the recipe, such as folder, packed or tfds:NAME',
  )
  parser.add_argument(
    '--data-dir', default='', metavar='DIR', help='data.dir of the recipe'
  )
  parser.add_argument(
    '--split', default='train', help='data.split of the recipe (train)'
  )
  parser.add_argument(
    '--holdout',
    type=options.fraction,
    default=0.1,
    help='data.holdout of the recipe (0.1)',
  )
  parser.add_argument(
    '--dtype',
    default='float32',
    choices=('float32', 'float16'),
    help='type of the stored logits (float32)',
  )
  parser.add_argument(
    '--batch-size', type=options.positive, default=64, help='batch size (64)'
  )
  parser.add_argument(
    '--threads',
    type=options.positive,
    default=4,
    help='threads that decode images (4)',
  )
  options.add_match_argument(parser)
  options.add_flat_argument(parser)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.teachers.stored_logits import write_logits

  meta = write_logits(
    args.weights,
    args.output,
    source=args.source,
    data_dir=args.data_dir,
    split=args.split,
    holdout=args.holdout,
    batch_size=args.batch_size,
    threads=args.threads,
    dtype=args.dtype,
    match_classes=args.match_classes,
    flat=args.flat,
    **options.loading(args),
  )
  print(
    f'wrote the logits of {meta["model"]} for {meta["examples"]:,} '
    f'examples to {args.output}: set loss.teacher_weights to it in a recipe'
  )
