"""Writes the features of images to a file.

  vit-jax features runs/flowers photos/ -o features.npz
  vit-jax features vit_s14.safetensors --model vit_s14_dinov2 photos/ \\
      -o features.parquet --tokens

An .npz file has 'image' (N,), the paths; 'features' (N, D), the values before
the head; and with --tokens 'tokens' (N, T, D). A .parquet file has a row for
each image. An image that cannot be read is named and left out, and the exit
code is 1.
"""

import argparse
import sys

from vit_jax.cli import options, spelling

HELP = 'write the features of images as .npz or .parquet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    'images', nargs='+', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument(
    '-o',
    '--output',
    required=True,
    metavar='FILE',
    help='file to write, .npz or .parquet (pip install pyarrow)',
  )
  parser.add_argument(
    '--tokens', action='store_true', help='write the tokens of each image too'
  )
  options.add_batch_argument(parser, 32)
  options.add_max_pixels_argument(parser)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference.features import compute_features, write_features
  from vit_jax.inference.loading import load_classifier
  from vit_jax.inference.prediction import list_images
  from vit_jax.training.progress import progress_bar

  spelling.check_order(args)
  images = list_images(args.images)
  classifier = load_classifier(args.weights, **options.loading(args))
  classifier.max_pixels = args.max_pixels
  batches = compute_features(
    classifier, images, tokens=args.tokens, batch_size=args.batch_size
  )
  count = -(-len(images) // args.batch_size)
  table, errors = write_features(
    progress_bar(batches, count, 'features'), args.output
  )
  for image, reason in errors.items():
    print(f'{image}: {reason}', file=sys.stderr)
  shapes = ', '.join(
    f'{name} {value.shape}' for name, value in table.items() if value.ndim > 1
  )
  print(f'wrote {args.output}: {len(table["image"]):,} images, {shapes}')
  if errors:
    raise ValueError(f'{len(errors)} of {len(images)} images could not be read')
