"""Draws attention, position embeddings and filters of a model.

  vit-jax attention runs/flowers photo.jpg -o rollout.png
  vit-jax attention ViT-B_16.npz --model vit_b16 photos/ --distance -o d.png
  vit-jax attention runs/vit photos/ --similarity --compare runs/cait -o s.png
  vit-jax attention runs/flowers photos/ --layer -1 --head 2 -o head.png

Three pictures need images:
  --rollout     how much each patch contributes to the class token (the default)
  --distance    mean distance in pixels over which each head of each layer
                attends
  --similarity  how similar the attention is in every two layers; with
                --compare, a curve for each model of the similarity of
                consecutive layers, which shows attention collapse
For a model that has outliers in its attention (DINOv2 without registers), a
rollout may show the last layer (--layer -1) or the last ones (--layer=-4:-1),
one head (--head N), only the larger probabilities (--discard 0.9), or be filled
(--fill-outliers).
Two show parameters:
  --posemb      similarity of the position embeddings
  --filters     principal components of the patch embedding
"""

import argparse
import json
import sys

from vit_jax.cli import options, spelling

HELP = 'draw attention, position embeddings and filters'
OPTIONS = {'layer=': '--layer ', 'head=': '--head ', 'discard=': '--discard '}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  # argparse does not fold the list of kinds, which is wider than 80 columns.
  parser.usage = '%(prog)s WEIGHTS [IMAGE ...] -o FILE [OPTION ...]'
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    'images', nargs='*', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument(
    '-o',
    '--output',
    required=True,
    metavar='FILE',
    help='.png, .jpg, .svg or .pdf file',
  )
  kinds = parser.add_mutually_exclusive_group()
  for kind, help_text in (
    ('rollout', 'attention rollout over the images (the default)'),
    ('distance', 'mean attention distance of every head'),
    ('similarity', 'similarity of the attention of every two layers'),
    ('posemb', 'similarity of position embeddings'),
    ('filters', 'principal components of the patch embedding'),
  ):
    kinds.add_argument(
      f'--{kind}',
      dest='kind',
      action='store_const',
      const=kind,
      help=help_text,
    )
  parser.set_defaults(kind='rollout')
  parser.add_argument(
    '--compare',
    action='append',
    default=[],
    metavar='[MODEL=]WEIGHTS',
    help='with --similarity: another model in the same plot; may be repeated',
  )
  view = parser.add_argument_group('what a rollout shows')
  view.add_argument(
    '--layer',
    type=_layers,
    metavar='N[:M]',
    help='the attention of one layer, from 1, where -1 is the last; or the '
    'rollout of the layers N to M, such as --layer=-4:-1',
  )
  view.add_argument(
    '--head', type=int, metavar='N', help='only this head of each layer, from 1'
  )
  view.add_argument(
    '--discard',
    type=float,
    default=0.0,
    metavar='X',
    help='leave out this fraction of the smallest probabilities of each token',
  )
  view.add_argument(
    '--fill-outliers',
    action='store_true',
    help='give patches with much more attention than their neighbors the '
    "neighbors' median",
  )
  view.add_argument(
    '--overlays',
    default='',
    metavar='DIR',
    help='also write each shaded photo at its own resolution',
  )
  parser.add_argument(
    '--json', action='store_true', help='also print the numbers as JSON'
  )
  options.add_dpi_argument(parser)
  options.add_max_pixels_argument(parser)
  options.add_model_arguments(parser)


def _layers(text: str) -> tuple[int, int]:
  """'3' -> (3, 3), '-4:-1' -> (-4, -1)."""
  first, _, last = text.partition(':')
  try:
    return int(first), int(last or first)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} must be the number of a layer, such as 3 or -1, or of two '
      'layers, such as 1:6'
    ) from None


def run(args: argparse.Namespace) -> None:
  from vit_jax.analysis import drawing, views
  from vit_jax.analysis.plots import check_format, set_dpi
  from vit_jax.inference.loading import load_classifier
  from vit_jax.inference.prediction import list_images

  spelling.check_order(args)
  check_format(args.output)
  set_dpi(args.dpi)
  needs_images = args.kind in ('rollout', 'distance', 'similarity')
  if needs_images and not args.images:
    raise ValueError(
      f'--{args.kind} needs images: name files or folders after the weights'
    )
  if args.compare and args.kind != 'similarity':
    raise ValueError('--compare goes with --similarity')
  view = views.View(
    args.layer, args.head, args.discard, args.fill_outliers, args.overlays
  )
  if view != views.View() and args.kind != 'rollout':
    raise ValueError(
      '--layer, --head, --discard, --fill-outliers and --overlays go with a '
      f'rollout and not with --{args.kind}'
    )
  paths = list_images(args.images) if needs_images else []
  classifier = load_classifier(args.weights, **options.loading(args))
  classifier.max_pixels = args.max_pixels
  images = drawing.Images(paths)
  if args.compare:
    others = []
    for assignment in args.compare:
      model, _, weights = assignment.rpartition('=')
      others.append(load_classifier(weights, model=model or None))
    numbers = drawing.draw_collapse([classifier, *others], images, args.output)
  elif args.kind == 'rollout':
    numbers = drawing.draw_rollout(classifier, images, args.output, view)
    note = views.outlier_note(numbers['outliers'], view)
    if note:
      print(note, file=sys.stderr)
  elif args.kind == 'distance':
    numbers = drawing.draw_distance(classifier, images, args.output)
  elif args.kind == 'similarity':
    numbers = drawing.draw_similarity(classifier, images, args.output)
  elif args.kind == 'posemb':
    numbers = drawing.draw_positions(classifier, args.output)
  else:
    numbers = drawing.draw_filters(classifier, args.output)
    if numbers['note']:
      print(f'note: {numbers["note"]}', file=sys.stderr)
  if args.json:
    print(json.dumps(numbers))
  else:
    print(f'wrote {", ".join(numbers.get("files", [args.output]))}')
  if images.bad:
    raise ValueError(
      f'{len(images.bad)} of {len(paths)} images could not be read'
    )
