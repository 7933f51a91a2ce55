"""Stores the logits of a teacher for all training images, for distillation.

  vit-jax teacher-logits runs/teacher --source folder --data flowers -o logits
  vit-jax teacher-logits runs/teacher --source packed --data packed/ \\
      -o packed_logits --dtype float16

A recipe uses them with loss.teacher_weights=logits.
"""

import argparse

from vit_jax.cli import options

HELP = 'store the logits of a teacher, for distillation'
OPTIONS = options.TEACHER_OPTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_teacher_arguments(parser)
  parser.add_argument(
    '--dtype',
    default='float32',
    choices=('float32', 'float16'),
    help='type of the stored logits (float32)',
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.teachers.stored_logits import write_logits

  meta = write_logits(
    args.weights,
    args.output,
    source=args.source,
    data_dir=args.data,
    split=args.split,
    holdout=args.holdout,
    batch_size=args.batch_size,
    threads=args.threads,
    dtype=args.dtype,
    match_classes=args.match_classes,
    flat=args.flat,
    share=options.share(args),
    **options.loading(args),
  )
  if args.process_id:
    print(options.SHARE_DONE)
    return
  print(
    f'wrote the logits of {meta["model"]} for {meta["examples"]:,} '
    f'examples to {args.output}: set loss.teacher_weights to it in a recipe'
  )
