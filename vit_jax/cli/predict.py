"""Classifies images, or all images of directories.

  vit-jax predict runs/flowers photo.jpg
  vit-jax predict ViT-B_16.npz --model vit_b16 photos/ --csv=result.csv

An image that cannot be read is named; the others are done, and the exit code
is 1.
"""

import csv
import json
import sys

from vit_jax.cli import options

HELP = 'classify images with class names and probabilities'


def add_arguments(parser):
  parser.add_argument(
    'weights',
    help='workdir, .npz, .pth, .safetensors, .stablehlo (exported), hub name',
  )
  parser.add_argument(
    'images', nargs='+', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument('-k', '--top-k', type=int, default=5, metavar='K')
  parser.add_argument('--batch', type=int, default=32, metavar='N')
  parser.add_argument(
    '--classes',
    metavar='FILE',
    help='class names, one a line or a JSON list, for weights that have none',
  )
  options.add_model_arguments(parser)
  formats = parser.add_mutually_exclusive_group()
  formats.add_argument(
    '--json',
    nargs='?',
    const='-',
    metavar='FILE',
    help='as JSON, to --json=FILE or the output',
  )
  formats.add_argument(
    '--csv',
    nargs='?',
    const='-',
    metavar='FILE',
    help='as CSV, to --csv=FILE or the output',
  )


def run(args):
  from vit_jax.inference import classifier as classifier_lib
  from vit_jax.training.progress import progress_bar

  images = classifier_lib.list_images(args.images)
  classes = read_classes(args.classes) if args.classes else None
  if args.weights.endswith('.stablehlo'):
    from vit_jax.inference.export import load_exported

    classifier = load_exported(args.weights)
  else:
    classifier = classifier_lib.load_classifier(
      args.weights, classes=classes, **options.loading(args)
    )
  results = progress_bar(
    classifier.classify(images, top_k=args.top_k, batch_size=args.batch),
    len(images),
    'predicting',
  )
  bad = 0

  def good(results):
    nonlocal bad
    for result in results:
      if 'error' in result:
        bad += 1
        print(f'{result["image"]}: {result["error"]}', file=sys.stderr)
      else:
        yield result

  if args.json is not None:
    with options.output(args.json) as file:
      json.dump(list(good(results)), file, indent=2)
      file.write('\n')
  elif args.csv is not None:
    with options.output(args.csv) as file:
      writer = csv.writer(file)
      writer.writerow(('image', 'rank', 'class', 'index', 'probability'))
      for result in good(results):
        writer.writerows(
          (
            result['image'],
            rank,
            p['class'],
            p['index'],
            f'{p["probability"]:.6f}',
          )
          for rank, p in enumerate(result['predictions'], 1)
        )
  else:
    for result in good(results):
      print(result['image'])
      print(
        options.table(
          [
            (f'  {p["probability"]:7.2%}', p['class'])
            for p in result['predictions']
          ]
        ),
        flush=True,
      )
  if bad:
    raise ValueError(f'{bad} of {len(images)} images could not be read')


def read_classes(path: str) -> list[str]:
  """Class names of a JSON list, or of lines."""
  with open(path, encoding='utf-8') as file:
    text = file.read()
  if text.lstrip().startswith('['):
    return [str(name) for name in json.loads(text)]
  return [line.strip() for line in text.splitlines() if line.strip()]
