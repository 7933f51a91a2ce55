"""Classifies images, or all images in directories.

  vit-jax predict runs/flowers photo.jpg
  vit-jax predict runs/flowers photos/ --json
  vit-jax predict ViT-B_16.npz --model vit_b16 photos/ -o result.csv

If an image cannot be read, its name is printed, the other images are
classified, and the exit code is 1. If a command that writes to a file is
stopped, the same command goes on where it was. Several processes or machines
share the images with --num-processes=N --process-id=0 to N-1; process 0 writes
the file.
"""

import argparse
from collections.abc import Iterator
import contextlib
import csv
import json
import sys
from typing import IO, Any

from vit_jax import text
from vit_jax.cli import options, spelling

HELP = 'classify images with class names and probabilities'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights',
    help='workdir, .npz, .pth, .safetensors, .stablehlo (exported), hub name',
  )
  parser.add_argument(
    'images', nargs='+', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument(
    '-k',
    '--top-k',
    type=options.positive,
    default=5,
    metavar='K',
    help='number of best classes to show (5)',
  )
  options.add_batch_argument(parser, 32)
  parser.add_argument(
    '--classes',
    metavar='FILE',
    help='class names, one per line, numbered or JSON, instead of those of the '
    'weights',
  )
  options.add_model_arguments(parser)
  options.add_max_pixels_argument(parser)
  options.add_share_arguments(parser)
  parser.add_argument(
    '-o',
    '--output',
    metavar='FILE',
    help='file to write instead of the standard output, .csv or .json',
  )
  formats = parser.add_mutually_exclusive_group()
  options.add_json_argument(formats)
  formats.add_argument('--csv', action='store_true', help='print CSV')


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.class_files import read_class_names
  from vit_jax.inference import prediction
  from vit_jax.training.progress import ImageProgress

  spelling.check_order(args)
  share, target = options.share(args), args.output
  kind = _format(args)
  images = prediction.list_sizes(args.images)
  classifier = prediction.open_classifier(
    args.weights,
    classes=read_class_names(args.classes) if args.classes else None,
    **options.loading(args),
  )
  classifier.max_pixels = args.max_pixels
  how: dict[str, Any] = {'top_k': args.top_k, 'batch_size': args.batch_size}
  job = None
  if target and target != '-':
    job = prediction.predict_in_shards(
      classifier, images, f'{target}.unfinished', share=share, **how
    )
    if not job.is_complete():
      print(options.SHARE_DONE, file=sys.stderr)
      return
    results = _Readable(prediction.read_results(job))
  elif share.processes > 1:
    raise ValueError(
      f'--num-processes={share.processes}: several processes need a file that '
      'all of them can write to: --output FILE.csv'
    )
  else:
    names = [path for path, _ in images]
    results = _Readable(
      _counted(
        classifier.classify(names, **how),
        ImageProgress(len(images), 'predicting'),
      )
    )
  if kind == 'json':
    with _output(target) as file:
      _write_json(results, file)
  elif kind == 'csv':
    with _output(target) as file:
      _write_csv(results, file)
  else:
    _print(results)
  if job:
    job.remove()
  if results.unreadable:
    raise ValueError(
      f'{results.unreadable} of {len(images)} images could not be read'
    )


def _format(args: argparse.Namespace) -> str:
  """'json', 'csv' or 'text'.

  Raises:
    ValueError: a file is to be written whose format is not known.
  """
  if args.json or args.csv:
    return 'json' if args.json else 'csv'
  if not args.output:
    return 'text'
  suffix = args.output.rpartition('.')[2].lower()
  if suffix not in ('csv', 'json'):
    raise ValueError(
      f'--output {args.output}: the file must be a .csv or a .json, or give '
      'its format by --csv or --json'
    )
  return suffix


def _counted(results: Iterator, progress: Any) -> Iterator:
  with progress:
    for result in results:
      yield result
      progress.advance()


class _Readable:
  """Iterates over results, and prints the names of unreadable images.

  Attributes:
    unreadable: number of images that could not be read so far.
  """

  def __init__(self, results: Iterator[dict[str, Any]]):
    self._results = results
    self.unreadable = 0

  def __iter__(self) -> Iterator[dict[str, Any]]:
    for result in self._results:
      if 'error' in result:
        self.unreadable += 1
        print(f'{result["image"]}: {result["error"]}', file=sys.stderr)
      else:
        yield result


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
  """Opens a file that appears when it is complete; None is standard output."""
  from vit_jax.files import open_atomically

  if path in (None, '-'):
    yield sys.stdout
  else:
    with open_atomically(path) as file:
      yield file


def _write_json(results: _Readable, file: IO[str]) -> None:
  """Writes a JSON list, one element after the other."""
  separator = '['
  for result in results:
    element = json.dumps(result, indent=2).replace('\n', '\n  ')
    file.write(f'{separator}\n  {element}')
    separator = ','
  file.write('[]\n' if separator == '[' else '\n]\n')


def _write_csv(results: _Readable, file: IO[str]) -> None:
  writer = csv.writer(file)
  writer.writerow(('image', 'rank', 'class', 'index', 'probability'))
  for result in results:
    for rank, p in enumerate(result['predictions'], 1):
      probability = f'{p["probability"]:.6f}'
      writer.writerow(
        (result['image'], rank, p['class'], p['index'], probability)
      )


def _print(results: _Readable) -> None:
  """Prints each result as soon as it is known."""
  for result in results:
    rows = [
      (f'{p["probability"]:7.2%}', p['class']) for p in result['predictions']
    ]
    print(result['image'])
    for line in text.table(rows, right=(0,)).splitlines():
      print(f'  {line}', flush=True)
