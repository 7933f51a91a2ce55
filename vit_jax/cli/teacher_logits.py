"""Stores the logits of a teacher for all training images, for distillation."""

import argparse

HELP = 'store the logits of a teacher, for distillation'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  from vit_jax.cli import options

  parser.add_argument('weights', help='of the teacher: a workdir or file')
  parser.add_argument('-o', '--output', required=True, metavar='DIR')
  parser.add_argument(
    '--source',
    required=True,
    help='data.source of the recipe: folder, tfds:NAME, ...',
  )
  parser.add_argument('--data-dir', default='', metavar='DIR')
  parser.add_argument('--split', default='train')
  parser.add_argument('--holdout', type=float, default=0.1, help='data.holdout')
  parser.add_argument(
    '--dtype', default='float32', choices=('float32', 'float16')
  )
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--threads', type=int, default=4)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.cli import options
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
    **options.loading(args),
  )
  print(
    f'wrote the logits of {meta["model"]} for {meta["examples"]:,} '
    f'examples to {args.output}: give it as loss.teacher_weights'
  )
