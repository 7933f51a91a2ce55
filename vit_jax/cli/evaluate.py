"""Measures a model on labeled images: accuracy, calibration, confusions.

  vit-jax evaluate runs/flowers --data flowers
  vit-jax evaluate ViT-B_16.npz --model vit_b16 --data ILSVRC2012_img_val.tar \\
      --labels val_labels.txt --output results/

All images of the data are taken, or those of its test split if it has one. With
--output, a directory gets the predictions, the accuracy of each class and the
confusions as CSV, everything else as JSON, and pictures of the confusion matrix
and of the calibration.
"""

import argparse
from collections.abc import Sequence
import csv
import json
from typing import TYPE_CHECKING, Any

from vit_jax import text
from vit_jax.cli import options

if TYPE_CHECKING:
  from etils import epath

  from vit_jax.evaluation.predictions import Predictions

HELP = 'measure accuracy, calibration and confusions on labeled images'
OPTIONS = {
  'data.dir': '--data',
  'data.max_bad_fraction': '--max-bad-fraction',
  'data.max_pixels': '--max-pixels',
  'data.flat=True': '--flat',
  'eval.batch_size': '--batch-size',
  "match_classes='numbers'": '--match-classes numbers',
  'protocol=': '--protocol=',
  '(labels)': '(--labels)',
}
_SHOWN = 5  # classes and pairs of classes that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights',
    help='workdir, .npz, .pth, .safetensors, .stablehlo (exported), hub name',
  )
  parser.add_argument(
    '--data',
    default='',
    metavar='PATH',
    help='folder of classes, a tar of it, what vit-jax pack wrote, or with '
    '--labels any folder or tar of images',
  )
  parser.add_argument(
    '--source',
    default='',
    metavar='NAME',
    help='data.source of a recipe, such as tfds:imagenet_v2 or digits; --data '
    'is then its directory',
  )
  parser.add_argument(
    '--split', help='such as test or train[:500]; default: test, or all images'
  )
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='labels of the images: CSV or JSON with the names of the images, or '
    'one label a line in the order of their names',
  )
  parser.add_argument(
    '--protocol',
    choices=('imagenet', 'real', 'v2', 'multilabel'),
    help='imagenet: one label; real: one of several labels is right, images '
    'without labels are left out; v2: folders are class numbers; multilabel: '
    'as real, with the mean average precision. Default: by the labels',
  )
  parser.add_argument(
    '--crop',
    type=_ratio,
    metavar='X',
    help="ratio of the center crop, such as 0.875; default: the weights' own",
  )
  parser.add_argument(
    '--interpolation', metavar='NAME', help='how images are resized'
  )
  options.add_batch_argument(parser, 64)
  options.add_threads_argument(parser)
  parser.add_argument(
    '--max-bad-fraction',
    type=options.fraction,
    default=0.01,
    metavar='X',
    help='fraction of the images that may be unreadable (0.01)',
  )
  parser.add_argument(
    '--classes',
    metavar='FILE',
    help='class names, one per line, numbered or JSON, instead of those of the '
    'weights',
  )
  options.add_match_argument(parser)
  options.add_flat_argument(parser)
  options.add_max_pixels_argument(parser)
  options.add_model_arguments(parser)
  parser.add_argument(
    '-o', '--output', metavar='DIR', help='directory for tables and pictures'
  )
  options.add_json_argument(parser)


def _ratio(text: str) -> float:
  """A number in (0, 1], for `type=` of an argument."""
  value = options.above_zero(text)
  if value > 1:
    raise argparse.ArgumentTypeError(
      f'{text!r} must be a number above 0, at most 1'
    )
  return value


def run(args: argparse.Namespace) -> None:
  from vit_jax.data.class_files import read_class_names
  from vit_jax.files import as_path
  from vit_jax.inference.accuracy import predict_labeled

  if not args.data and not args.source:
    raise ValueError('give the images: --data PATH, or --source NAME')
  classifier, predictions = predict_labeled(
    args.weights,
    args.data,
    source=args.source,
    split=args.split,
    labels=args.labels,
    protocol=args.protocol,
    crop=args.crop,
    interpolation=args.interpolation,
    batch_size=args.batch_size,
    threads=args.threads,
    max_bad_fraction=args.max_bad_fraction,
    max_pixels=args.max_pixels,
    match_classes=args.match_classes,
    flat=args.flat,
    classes=read_class_names(args.classes) if args.classes else None,
    **options.loading(args),
  )
  names = _names(classifier.classes, predictions)
  summary = {
    **predictions.summary(),
    'weights': args.weights,
    'model': classifier.name,
    'data': predictions.source.name,
    'images': len(predictions.index),
    'unreadable': predictions.bad,
    'preprocessing': classifier.preprocessing.to_json(),
    'images_per_second': float(f'{predictions.images_per_second:.4g}'),
  }
  if args.json:
    print(json.dumps(summary, indent=2))
  else:
    _print(summary, predictions, names)
  if args.output:
    written = _write(as_path(args.output), summary, predictions, names)
    if not args.json:
      print(f'wrote {args.output}: {", ".join(written)}')


def _names(
  classes: Sequence[str] | None, predictions: 'Predictions'
) -> list[str]:
  """The names of the outputs; those of the data if the weights have none."""
  if classes:
    return list(classes)
  numbers = [str(i) for i in range(predictions.num_classes)]
  names = predictions.source.class_names or numbers
  # Folders of ImageNet-V2 are called by numbers.
  return [f'class {x}' if x.isdecimal() else x for x in names]


def _print(
  summary: dict[str, Any], predictions: 'Predictions', names: list[str]
) -> None:
  """Prints the results as text that a person reads."""
  images, counted = summary['images'], summary['examples']
  print(
    f'{summary["model"]} ({summary["weights"]}) on '
    f'{text.counted(counted, "image")} of {summary["data"]}'
  )
  if counted < images:
    print(
      f'left out: {text.counted(images - counted, "image")} without a label'
    )
  if summary['unreadable']:
    unreadable = text.counted(len(summary['unreadable']), 'image')
    print(f'could not be read: {unreadable}')
  rows = [
    ('top-1', f'{summary["top1"]:.2%}'),
    ('top-5', f'{summary["top5"]:.2%}'),
    ('mean over classes', f'{summary["mean_per_class"]:.2%}'),
  ]
  if 'mean_average_precision' in summary:
    precision = summary['mean_average_precision']
    rows.append(('mean average precision', f'{precision:.2%}'))
  rows += [
    ('loss', f'{summary["loss"]:.4f}'),
    ('calibration error', f'{summary["calibration_error"]:.2%}'),
    ('images/s', f'{summary["images_per_second"]:.4g}'),
  ]
  print(text.table(rows, right=(1,)))
  right, total = predictions.per_class()
  # Of classes that are equally bad, first those with the most images.
  share = sorted(
    (r / n, -int(n), i)
    for i, (r, n) in enumerate(zip(right, total, strict=True))
    if r < n
  )
  if share and len(names) > 1:
    print('worst classes:')
    for fraction, _, i in share[:_SHOWN]:
      print(f'  {fraction:7.2%}  {right[i]:,} of {total[i]:,}  {names[i]}')
  if predictions.labels.ndim == 1:
    wrong = _confusions(predictions)[:_SHOWN]
    if wrong:
      print('most confused, label -> prediction:')
    for count, label, predicted in wrong:
      print(f'  {count:,}  {names[label]} -> {names[predicted]}')


def _confusions(predictions: 'Predictions') -> list[tuple[int, int, int]]:
  """(images, label, prediction) of all mistakes, the most frequent first."""
  entries = zip(*(x.tolist() for x in predictions.confusion()), strict=True)
  return sorted(
    ((n, label, best) for label, best, n in entries if label != best),
    key=lambda x: (-x[0], x[1:]),
  )


def _write(
  folder: 'epath.Path',
  summary: dict[str, Any],
  predictions: 'Predictions',
  names: list[str],
) -> list[str]:
  """Writes all tables and pictures; returns the names of the files."""
  from vit_jax.analysis import quality
  from vit_jax.evaluation.scores import confusion_matrix
  from vit_jax.files import open_atomically, write_atomically

  folder.mkdir(parents=True, exist_ok=True)
  right, total = predictions.per_class()
  tables = {
    'predictions.csv': (
      ('image', 'label', 'predicted', 'probability', 'right', 'loss'),
      _prediction_rows(predictions, names),
    ),
    'classes.csv': (
      ('class', 'index', 'images', 'right', 'accuracy'),
      (
        (name, i, n, r, f'{r / n:.6f}' if n else '')
        for i, (name, r, n) in enumerate(zip(names, right, total, strict=True))
      ),
    ),
  }
  title = f'{summary["model"]} on {summary["data"]}'
  pictures = []
  if predictions.labels.ndim == 1:
    tables['confusions.csv'] = (
      ('label', 'predicted', 'images'),
      ((names[a], names[b], n) for n, a, b in _confusions(predictions)),
    )
    if len(names) <= 200:  # more are not legible
      matrix = confusion_matrix(
        predictions.labels, predictions.best[:, 0], len(names)
      )
      quality.plot_confusion(matrix, names, folder / 'confusion.png', title)
      pictures.append('confusion.png')
  quality.plot_calibration(
    predictions.calibration(), folder / 'calibration.png', title
  )
  for name, (header, rows) in tables.items():
    with open_atomically(folder / name) as file:
      writer = csv.writer(file)
      writer.writerow(header)
      writer.writerows(rows)
  text_of_summary = json.dumps(summary, indent=2) + '\n'
  write_atomically(folder / 'summary.json', text_of_summary)
  return ['summary.json', *tables, *pictures, 'calibration.png']


def _prediction_rows(predictions: 'Predictions', names: list[str]):
  """One row for each image, in the order of the source."""
  right = predictions.right
  for i, index in enumerate(predictions.index.tolist()):
    label = predictions.labels[i]
    if predictions.labels.ndim == 1:
      labels = names[int(label)]
    else:
      labels = ';'.join(names[c] for c in label.nonzero()[0])
    yield (
      predictions.source.describe(index),
      labels,
      names[int(predictions.best[i, 0])],
      f'{predictions.confidence[i, 0]:.6f}',
      int(right[i]),
      f'{predictions.losses[i]:.6f}',
    )
