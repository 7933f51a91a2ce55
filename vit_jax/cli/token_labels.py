"""Makes labels for each patch of each image with a teacher (VOLO)."""

import argparse
import dataclasses

HELP = 'make labels for each patch of each image with a teacher'


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
  parser.add_argument('--top-k', type=int, default=5)
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--threads', type=int, default=4)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.cli import options
  from vit_jax.data.sources.opening import open_source
  from vit_jax.inference.loading import load_classifier
  from vit_jax.teachers.classes import check_classes
  from vit_jax.teachers.token_labels import make_token_labels

  teacher = load_classifier(args.weights, **options.loading(args))
  source = open_source(
    args.source, split=args.split, data_dir=args.data_dir, holdout=args.holdout
  )
  check_classes(
    args.weights,
    teacher.num_classes,
    teacher.classes,
    source.num_classes,
    source.class_names,
  )
  meta = make_token_labels(
    teacher.model,
    teacher.variables,
    source,
    args.output,
    # Labels are made for the whole image, not for its center.
    preprocessing=dataclasses.replace(teacher.preprocessing, crop=None),
    top_k=args.top_k,
    batch_size=args.batch_size,
    threads=args.threads,
    teacher=teacher.name,
    progress=lambda done: print(f'{done:,} of {len(source):,}', flush=True),
  )
  print(
    f'wrote {meta["grid"][0]}x{meta["grid"][1]} maps of the '
    f'{meta["top_k"]} best classes of {meta["examples"]:,} examples to '
    f'{args.output}: give it as data.labels'
  )
