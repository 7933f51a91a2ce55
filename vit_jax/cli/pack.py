"""Packs images into a few large files, which can be read fast in any order.

  vit-jax pack ILSVRC2012_train.tar -o i1k/
  vit-jax pack flowers/ -o packed/ --short-side 256
  vit-jax pack gs://bucket/in -o gs://bucket/out --runner DataflowRunner \\
      --runner-option project=P --runner-option region=R

The inputs are a folder with one directory per class, a folder with train/ and
test/, tar files of such folders, or files with labels of their own: webdataset
tars, TFRecord and Parquet. With --labels, a file gives the labels instead. To
train on the result, use data.source='packed' in a recipe, or give its directory
to vit-jax finetune --data.

With --runner, the shards are written on many machines, see docs/packing.md.
"""

import argparse
import json
import sys
from typing import Any

from vit_jax import text
from vit_jax.cli import options

HELP = 'pack images into a few large files for fast reading'
OPTIONS = {
  'labels_file': '--labels',
  'shards=': '--shards=',
  'quality=': '--quality=',
  'data.flat=True': '--flat',
  'data.max_pixels': '--max-pixels',
  'overwrite=True': '--overwrite',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('inputs', nargs='+', help='folders, tar or record files')
  parser.add_argument(
    '-o', '--output', metavar='DIR', help='directory to write'
  )
  parser.add_argument(
    '--split',
    help='name of the split; default: train, or the splits of the folder',
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='JSON {file name: label or [labels]}, or CSV lines FILE,LABEL,...',
  )
  for option, words in (
    ('--file-column', 'title or number of its column of file names'),
    (
      '--label-column',
      'the same of its column of labels, or several: 2,3. Of files of records: '
      'the name of the field of labels',
    ),
  ):
    parser.add_argument(option, metavar='COLUMN', help=f'of --labels: {words}')
  parser.add_argument(
    '--label-kind',
    choices=('names', 'numbers', 'one-hot'),
    help='of --labels: what the labels are; default: by the whole column',
  )
  options.add_flat_argument(parser)
  options.add_max_pixels_argument(parser)
  parser.add_argument(
    '--shards',
    type=options.positive,
    metavar='N',
    help='number of files per split; default: one per 10,000 images',
  )
  parser.add_argument(
    '--short-side',
    type=options.positive,
    metavar='N',
    help='shrink larger images until their shorter side has N pixels',
  )
  parser.add_argument(
    '--quality',
    type=options.positive,
    default=95,
    metavar='Q',
    help='JPEG quality of the images that are shrunk (95)',
  )
  parser.add_argument(
    '--no-shuffle',
    action='store_true',
    help='keep the images in the order of their names',
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='replace a split that exists'
  )
  parser.add_argument(
    '--runner',
    metavar='NAME',
    help='write the shards by an Apache Beam pipeline: DirectRunner, '
    'DataflowRunner, FlinkRunner or SparkRunner; started again, it keeps the '
    'shards that are finished',
  )
  parser.add_argument(
    '--runner-option',
    action='append',
    default=[],
    metavar='OPTION=VALUE',
    help='an option of the runner, such as direct_num_workers=4; may be '
    'repeated',
  )
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.pack import pack
  from vit_jax.data.pack_beam import Runner

  terminal = sys.stderr.isatty()

  def progress(done, total):
    if terminal and (done % 100 == 0 or done == total or args.runner):
      print(f'\r{done:,} of {total:,} images', end='', file=sys.stderr)

  runner = None
  runner_options = [f'--{x.lstrip("-")}' for x in args.runner_option]
  if args.runner:
    runner = Runner(args.runner, runner_options)
  elif runner_options:
    raise ValueError(
      f'--runner-option {args.runner_option[0]} needs --runner, such as '
      '--runner DirectRunner'
    )
  inputs = options.last_as_output(args, args.inputs)
  splits = pack(
    inputs,
    args.output,
    split=args.split,
    shards=args.shards,
    shuffle_seed=None if args.no_shuffle else 0,
    short_side=args.short_side,
    quality=args.quality,
    labels_file=args.labels,
    label_columns={
      'file_column': args.file_column,
      'label_column': args.label_column,
      'kind': args.label_kind,
    },
    flat=args.flat,
    max_pixels=args.max_pixels,
    overwrite=args.overwrite,
    progress=progress,
    runner=runner,
  )
  if terminal:
    print(file=sys.stderr)
  if args.json:
    described = {name: _described(meta) for name, meta in splits.items()}
    print(json.dumps({'output': args.output, 'splits': described}, indent=2))
  for split, meta in splits.items():
    if not args.json:
      print(
        f'{args.output}: {split}, {text.counted(meta["num_examples"], "image")}'
        f' of {text.counted(meta["num_classes"], "class")} in '
        f'{text.counted(len(meta["shards"]), "file")}'
      )
    for bad in meta['bad_examples']:
      print(f'left out {bad["id"]}: {bad["reason"]}', file=sys.stderr)


def _described(meta: dict[str, Any]) -> dict[str, Any]:
  """What --json tells about a split, of its metadata."""
  return {
    'images': meta['num_examples'],
    'classes': meta['num_classes'],
    'files': [shard['file'] for shard in meta['shards']],
    'left_out': meta['bad'],
    'reasons': {bad['id']: bad['reason'] for bad in meta['bad_examples']},
  }
