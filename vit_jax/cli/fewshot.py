"""Probes of frozen features on labeled images.

  vit-jax fewshot ViT-B_16.npz --model vit_b16 --data flowers
  vit-jax fewshot runs/flowers --data flowers --knn 5 20 --logistic
  vit-jax fewshot ViT-B_16.npz --model vit_b16 --source tfds:cifar100 \\
      --data TFDS_DIR --l2 64 1024

A ridge regression is fitted to the features of 1, 5, 10 and 25 images per
class, and tested on the test images. The accuracy is the mean over three random
choices of the training images. --knn and --logistic are probes on all training
images: the votes of the nearest ones, and scikit-learn's logistic regression.
The word none for the weights takes random parameters, which shows what the
pre-training has added.
"""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from vit_jax import text
from vit_jax.cli import options

if TYPE_CHECKING:
  from vit_jax.data.sources.source import Source
  from vit_jax.inference.classifier import Classifier

HELP = 'fit a linear probe to frozen features of 1 to 25 images per class'
OPTIONS = {
  'data.flat=True': '--flat',
  'data.dir': '--data',
  'data.holdout': '--holdout',
  'data.source': '--source',
  'eval.batch_size': '--batch-size',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights',
    help='workdir, .npz, .pth, .safetensors, hub name, or none for random '
    'parameters',
  )
  parser.add_argument(
    '--data',
    default='',
    metavar='DIR',
    help='image folder, or what vit-jax pack wrote',
  )
  parser.add_argument(
    '--source',
    default='',
    metavar='NAME',
    help='data.source of a recipe, such as tfds:cifar100 or digits; --data is '
    'then its directory',
  )
  parser.add_argument(
    '--train-split',
    default='train',
    metavar='SPLIT',
    help='split for training, such as train[:65000] (train)',
  )
  parser.add_argument(
    '--test-split', default='test', metavar='SPLIT', help='split to test (test)'
  )
  parser.add_argument(
    '--shots',
    type=options.positive,
    nargs='+',
    default=[1, 5, 10, 25],
    metavar='N',
    help='numbers of images per class (1 5 10 25)',
  )
  parser.add_argument(
    '--seeds',
    type=options.positive,
    default=3,
    metavar='N',
    help='number of random choices of the training images (3)',
  )
  parser.add_argument(
    '--l2',
    type=options.above_zero,
    nargs='+',
    default=[1024.0],
    metavar='X',
    help='weights of the penalty of the ridge regression (1024)',
  )
  parser.add_argument(
    '--knn',
    type=options.positive,
    nargs='+',
    default=[],
    metavar='K',
    help='numbers of nearest training images that vote',
  )
  parser.add_argument(
    '--logistic',
    action='store_true',
    help='fit a logistic regression to all training images',
  )
  parser.add_argument(
    '--holdout',
    type=options.fraction,
    default=0.5,
    metavar='X',
    help='fraction of the images for testing, if the folder has no test '
    'directory (0.5)',
  )
  options.add_batch_argument(parser, 32)
  options.add_flat_argument(parser)
  options.add_model_arguments(parser)
  options.add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
  import jax

  from vit_jax.evaluation.fewshot import extract_features, probe_features

  classifier = _classifier(args)
  train, test = _sources(args)

  @jax.jit
  def features(images):
    _, out = classifier.forward(classifier.on_device, images)
    return out['pre_logits']

  train_set, test_set = (
    extract_features(
      features, source, classifier.preprocessing, batch_size=args.batch_size
    )
    for source in (train, test)
  )
  results = {
    (n, l2): result
    for l2 in args.l2
    for n, result in probe_features(
      train_set,
      test_set,
      train.num_classes,
      shots=args.shots,
      seeds=args.seeds,
      l2=l2,
    ).items()
  }
  others = _probes_of_all(train_set, test_set, train.num_classes, args)
  several = len(args.l2) > 1
  if args.json:
    shots = {
      f'{n}, l2 = {l2:g}' if several else n: dataclasses.asdict(result)
      for (n, l2), result in results.items()
    }
    print(json.dumps({**shots, **others}))
    return
  header = ['shots', 'l2', 'accuracy', 'of each choice']
  rows = [
    [str(n), f'{l2:g}', f'{r.mean:.2%}', ', '.join(f'{x:.2%}' for x in r.seeds)]
    for (n, l2), r in sorted(results.items())
  ]
  if not several:
    for cells in (header, *rows):
      del cells[1]
  print(text.table(rows, header=header, right=range(len(header) - 1)))
  if others:
    rows = [(name, f'{value:.2%}') for name, value in others.items()]
    header = ('all training images', 'accuracy')
    print('\n' + text.table(rows, header=header, right=(1,)))


def _classifier(args: argparse.Namespace) -> 'Classifier':
  """The model, with its weights or with random parameters."""
  from vit_jax.inference.loading import load_classifier, random_classifier

  if args.weights.lower() != 'none':
    return load_classifier(args.weights, **options.loading(args))
  if not args.model:
    raise ValueError(
      'random parameters need a model: --model NAME (vit-jax models lists the '
      'names)'
    )
  return random_classifier(
    args.model,
    module=args.module,
    image_size=args.image_size,
    fields=options.fields(args.set),
  )


def _sources(args: argparse.Namespace) -> tuple['Source', 'Source']:
  """The images for training and for testing, with classes of one numbering."""
  from vit_jax.data.sources.opening import directory_source, open_source
  from vit_jax.data.sources.renumbered import with_classes

  if not args.data and not args.source:
    raise ValueError('give the images: --data PATH, or --source NAME')
  kind = args.source or directory_source(args.data)
  train, test = (
    open_source(
      kind,
      split=split,
      data_dir=args.data,
      holdout=args.holdout,
      flat=args.flat,
    )
    for split in (args.train_split, args.test_split)
  )
  return train, with_classes(
    test, train.num_classes, train.class_names, train.name
  )


def _probes_of_all(
  train_set: tuple, test_set: tuple, classes: int, args: argparse.Namespace
) -> dict[str, float]:
  """{name of the probe: accuracy} of the probes on all training images."""
  from vit_jax.evaluation.probes import knn_scores, logistic_scores

  (x, y), (test_x, test_y) = train_set, test_set
  accuracy = lambda scores: float((scores.argmax(axis=1) == test_y).mean())
  results = {
    f'{k} nearest neighbors': accuracy(knn_scores(x, y, test_x, classes, k=k))
    for k in args.knn
  }
  if args.logistic:
    scores, strength = logistic_scores(x, y, test_x, classes)
    results[f'logistic regression, C = {strength:g}'] = accuracy(scores)
  return results
