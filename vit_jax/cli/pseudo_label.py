"""Labels images with a teacher, for self-training (Noisy Student).

  vit-jax pseudo-label runs/teacher photos/ -o pseudo/
  vit-jax pseudo-label runs/teacher --source tfds:imagenet_v2 --data TFDS_DIR \\
      -o pseudo/ --threshold 0.5

Images for which the teacher is confident enough become a packed split, on which
a recipe trains with data.pseudo_dir, besides its labeled images.
"""

import argparse

from vit_jax.cli import options

HELP = 'label images with a teacher, for self-training'
OPTIONS = {
  'data.match_classes': '--match-classes',
  'threshold=': '--threshold=',
  'per_class=': '--per-class=',
  'max_labels=': '--max-labels=',
  'eval.batch_size': '--batch-size',
  'data.threads': '--threads',
  'data.flat=True': '--flat',
  'data.source': '--source',
  'data.dir': '--data',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('weights', help='the teacher: a workdir or file')
  parser.add_argument(
    'images', nargs='*', help='folders or tar files of images without labels'
  )
  parser.add_argument(
    '-o', '--output', metavar='DIR', help='directory for the packed split'
  )
  parser.add_argument(
    '--threshold',
    type=float,
    default=0.3,
    metavar='P',
    help='smallest probability of the best class of an image (0.3)',
  )
  parser.add_argument(
    '--per-class',
    type=options.positive,
    metavar='N',
    help='balance the classes: take N images of each',
  )
  parser.add_argument(
    '--hard',
    action='store_true',
    help='store the best class instead of probabilities',
  )
  parser.add_argument(
    '--max-labels',
    type=options.positive,
    default=100,
    metavar='K',
    help='largest number of classes in a soft label (100)',
  )
  parser.add_argument(
    '--split', default='pseudo', help='name of the split (pseudo)'
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='seed of the order of images (0)'
  )
  options.add_batch_argument(parser, 64)
  options.add_threads_argument(parser)
  parser.add_argument(
    '--overwrite', action='store_true', help='replace a split that exists'
  )
  parser.add_argument(
    '--source',
    default='',
    help='label the images of a source (tfds:NAME, packed, ...) instead',
  )
  parser.add_argument(
    '--data', default='', metavar='DIR', help='directory of --source'
  )
  parser.add_argument(
    '--data-split',
    default='train',
    metavar='SPLIT',
    help="split of --source, such as 'train[10%%:]' (train)",
  )
  options.add_flat_argument(parser)
  options.add_match_argument(parser)
  options.add_share_arguments(parser)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.sources.opening import open_source
  from vit_jax.teachers.pseudo_labels import pseudo_label

  words = options.last_as_output(args, args.images, least=0)
  if bool(words) == bool(args.source):
    raise ValueError(
      'give the unlabeled images either as folders and tar files, or as '
      '--source with --data and --data-split'
    )
  images = words or open_source(
    args.source, split=args.data_split, data_dir=args.data, flat=args.flat
  )
  meta = pseudo_label(
    args.weights,
    images,
    args.output,
    threshold=args.threshold,
    per_class=args.per_class,
    soft=not args.hard,
    max_labels=args.max_labels,
    split=args.split,
    seed=args.seed,
    batch_size=args.batch_size,
    threads=args.threads,
    overwrite=args.overwrite,
    match_classes=args.match_classes,
    share=options.share(args),
    **options.loading(args),
  )
  if args.process_id:
    print(options.SHARE_DONE)
    return
  counts = [n for n in meta['examples_per_class'] if n]
  print(
    f'{meta["images"]:,} images, {meta["unreadable"]:,} unreadable; '
    f'{meta["confident"]:,} reach the threshold {args.threshold}, '
    f'{meta["distinct"]:,} are stored in {meta["labelled"]:,} records of '
    f'{len(counts)} classes '
    f'({min(counts):,} to {max(counts):,} each; '
    f'{meta["num_classes"] - len(counts)} classes have none)'
  )
  print(
    f'wrote {args.output}: train with data.pseudo_dir={args.output!r}'
    if args.split == 'pseudo'
    else f"wrote {args.output}: train with data.source='packed', "
    f"data.split='train+{args.split}'"
  )
