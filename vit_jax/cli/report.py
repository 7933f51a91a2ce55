"""Writes one HTML page about runs, which needs no network.

  vit-jax report runs/flowers -o report.html
  vit-jax report runs/a runs/b -o report.html
  vit-jax report runs/flowers --watch

The page has the recipe and what differs between runs, curves, results,
confusions, best and worst examples, calibration, and an explorer of attention.
The test images are those of the run's recipe, if no others are given. --watch
serves the page on this machine only, and it follows the training.
"""

import argparse
import sys

from vit_jax.cli import options

HELP = 'write an HTML page about runs'
OPTIONS = {
  'data.flat=True': '--flat',
  'data.source': '--source',
  'data.dir': '--data',
  'eval.batch_size': '--batch-size',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdirs_argument(parser)
  parser.add_argument(
    '-o',
    '--output',
    default='',
    metavar='FILE.html',
    help='the page; default: report.html',
  )
  parser.add_argument(
    '--data', default='', metavar='PATH', help='other test images'
  )
  parser.add_argument(
    '--source', default='', metavar='NAME', help='data.source of other images'
  )
  parser.add_argument('--split', help='split of the other images')
  options.add_flat_argument(parser)
  parser.add_argument(
    '--examples',
    type=options.positive,
    default=2000,
    metavar='N',
    help='test images that are classified (2000)',
  )
  parser.add_argument(
    '--images',
    type=options.positive,
    default=6,
    metavar='N',
    help='images whose attention is shown (6)',
  )
  options.add_batch_argument(parser, 64)
  parser.add_argument(
    '--no-model',
    action='store_true',
    help='only recipe, curves and results: no images are read',
  )
  parser.add_argument(
    '--watch',
    action='store_true',
    help='serve the page on this machine and follow the training',
  )
  parser.add_argument(
    '--port',
    type=int,
    default=0,
    metavar='N',
    help='port of --watch (one that is free)',
  )


def run(args: argparse.Namespace) -> None:
  from vit_jax.files import as_path, write_atomically
  from vit_jax.report.build import Report

  if args.split and not (args.data or args.source):
    raise ValueError(
      f'--split {args.split} goes with --data or --source: without them the '
      "images are those of the run's recipe"
    )
  if args.watch and args.output:
    raise ValueError('--watch serves the page and writes no file: leave out -o')
  path = as_path(args.output or 'report.html')
  if path.suffix.lower() not in ('.html', '.htm'):
    raise ValueError(
      f'--output {path}: the name of the page must end with .html'
    )
  report = Report(
    args.workdirs,
    model=not args.no_model,
    images=args.images,
    data=args.data,
    source=args.source,
    split=args.split,
    flat=args.flat,
    most=args.examples,
    batch_size=args.batch_size,
    say=lambda text: print(options.in_options(text, OPTIONS), file=sys.stderr),
  )
  if args.watch:
    from vit_jax.report.server import make_server

    report.version()  # an error in a path is said at once
    with make_server(report, args.port) as server:
      print(f'http://{server.server_address[0]}:{server.server_address[1]}/')
      print('Ctrl-C ends', flush=True)
      server.serve_forever()
  html = report.html()
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, html)
  print(f'wrote {path} ({len(html.encode()) / 1e6:.1f} MB)')
