"""Probes of frozen features on a folder of images.

  vit-jax fewshot ViT-B_16.npz --model vit_b16 --data flowers
  vit-jax fewshot runs/flowers --data flowers --knn 5 20 --logistic

A ridge regression is fitted to the features of 1, 5, 10 and 25 images per
class, and tested on the test images of the folder. The accuracy is the mean
over three random choices of the training images. --knn and --logistic are
probes on all training images: the votes of the nearest ones, and scikit-learn's
logistic regression.
"""

import argparse
import dataclasses
import json

from vit_jax import text
from vit_jax.cli import options

HELP = 'fit a linear probe to frozen features of 1 to 25 images per class'
OPTIONS = {
  'data.flat=True': '--flat',
  'data.dir': '--data',
  'data.holdout': '--holdout',
  'eval.batch_size': '--batch-size',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    '--data',
    required=True,
    metavar='DIR',
    help='image folder, or what vit-jax pack wrote',
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

  from vit_jax.data.sources.opening import directory_source, open_source
  from vit_jax.data.sources.renumbered import with_classes
  from vit_jax.evaluation.fewshot import extract_features, probe_features
  from vit_jax.inference.loading import load_classifier

  classifier = load_classifier(args.weights, **options.loading(args))
  kind = directory_source(args.data)
  train, test = (
    open_source(
      kind,
      split=split,
      data_dir=args.data,
      holdout=args.holdout,
      flat=args.flat,
    )
    for split in ('train', 'test')
  )
  test = with_classes(test, train.num_classes, train.class_names, train.name)

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
  results = probe_features(
    train_set, test_set, train.num_classes, shots=args.shots, seeds=args.seeds
  )
  others = _probes_of_all(train_set, test_set, train.num_classes, args)
  if args.json:
    shots = {n: dataclasses.asdict(r) for n, r in results.items()}
    print(json.dumps({**shots, **others}))
    return
  rows = [
    (n, f'{r.mean:.2%}', ', '.join(f'{x:.2%}' for x in r.seeds))
    for n, r in results.items()
  ]
  header = ('shots', 'accuracy', 'of each choice')
  print(text.table(rows, header=header, right=(0, 1)))
  if others:
    rows = [(name, f'{value:.2%}') for name, value in others.items()]
    header = ('all training images', 'accuracy')
    print('\n' + text.table(rows, header=header, right=(1,)))


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
