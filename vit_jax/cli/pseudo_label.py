"""Labels images with a teacher, for self-training."""

import argparse

HELP = 'label images with a teacher, for self-training'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  from vit_jax.cli import options

  parser.add_argument('weights', help='of the teacher: a workdir or file')
  parser.add_argument(
    'images', nargs='+', help='folders or tar files of images without labels'
  )
  parser.add_argument('out', help='directory of the packed split')
  parser.add_argument(
    '--threshold',
    type=float,
    default=0.3,
    metavar='P',
    help='least probability of the best class (0.3)',
  )
  parser.add_argument(
    '--per-class',
    type=int,
    metavar='N',
    help='balance: N images of every class',
  )
  parser.add_argument(
    '--hard',
    action='store_true',
    help='keep the best class instead of probabilities',
  )
  parser.add_argument(
    '--max-labels',
    type=int,
    default=100,
    metavar='K',
    help='classes in a soft label (100)',
  )
  parser.add_argument('--split', default='pseudo')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--threads', type=int, default=4)
  parser.add_argument('--overwrite', action='store_true')
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.cli import options
  from vit_jax.teachers.pseudo_labels import pseudo_label

  meta = pseudo_label(
    args.weights,
    args.images,
    args.out,
    threshold=args.threshold,
    per_class=args.per_class,
    soft=not args.hard,
    max_labels=args.max_labels,
    split=args.split,
    seed=args.seed,
    batch_size=args.batch_size,
    threads=args.threads,
    overwrite=args.overwrite,
    **options.loading(args),
  )
  counts = [n for n in meta['examples_per_class'] if n]
  print(
    f'{meta["images"]:,} images, {meta["unreadable"]:,} unreadable; '
    f'{meta["confident"]:,} reach {args.threshold}, {meta["distinct"]:,} '
    f'taken as {meta["labelled"]:,} records of {len(counts)} classes '
    f'({min(counts):,} to {max(counts):,} each; '
    f'{meta["num_classes"] - len(counts)} classes have none)'
  )
  print(
    f"wrote {args.out}: train with data.source='packed', "
    f"data.split='train+{args.split}'"
  )
