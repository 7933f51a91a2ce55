"""Makes labels for each patch of each image with a teacher (VOLO).

  vit-jax token-labels runs/teacher --source folder --data flowers -o labels
  vit-jax token-labels runs/teacher --source packed --data packed/ \\
      -o packed_labels --top-k 10

A recipe uses them with data.labels=labels.
"""

import argparse
import dataclasses

from vit_jax.cli import options

HELP = 'make labels for each patch of each image with a teacher'
OPTIONS = options.TEACHER_OPTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_teacher_arguments(parser)
  parser.add_argument(
    '--top-k',
    type=options.positive,
    default=5,
    help='classes stored for each patch (5)',
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.sources.opening import open_source
  from vit_jax.inference.loading import load_classifier
  from vit_jax.teachers.classes import check_classes
  from vit_jax.teachers.token_labels import make_token_labels

  teacher = load_classifier(args.weights, **options.loading(args))
  source = open_source(
    args.source,
    split=args.split,
    data_dir=args.data,
    holdout=args.holdout,
    flat=args.flat,
  )
  columns = check_classes(
    args.weights,
    teacher.num_classes,
    teacher.classes,
    source.num_classes,
    source.class_names,
    args.match_classes,
  )
  meta = make_token_labels(
    teacher.model,
    teacher.variables,
    source,
    args.output,
    # Labels are made of the whole image, not only of its center.
    preprocessing=dataclasses.replace(teacher.preprocessing, crop=None),
    columns=columns,
    top_k=args.top_k,
    batch_size=args.batch_size,
    threads=args.threads,
    teacher=teacher.name,
    share=options.share(args),
  )
  if args.process_id:
    print(options.SHARE_DONE)
    return
  print(
    f'wrote {meta["grid"][0]}x{meta["grid"][1]} maps of the '
    f'{meta["top_k"]} best classes of {meta["examples"]:,} examples to '
    f'{args.output}: set data.labels to it in a recipe'
  )
