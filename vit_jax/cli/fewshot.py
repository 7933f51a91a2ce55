"""Few-shot accuracy of frozen features on a folder of images.

  vit-jax fewshot ViT-B_16.npz --model vit_b16 --data flowers

A ridge regression is fitted to the features of 1, 5, 10 and 25 images per
class, and tested on the test images of the folder. The accuracy is the mean
over three random choices of the training images.
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
  'eval.batch_size': '--batch',
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
    '--holdout',
    type=options.fraction,
    default=0.5,
    metavar='X',
    help='fraction of the images for testing, if the folder has no test '
    'directory (0.5)',
  )
  parser.add_argument(
    '--batch',
    type=options.positive,
    default=32,
    metavar='N',
    help='batch size (32)',
  )
  options.add_flat_argument(parser)
  options.add_model_arguments(parser)
  parser.add_argument('--json', action='store_true', help='as JSON')


def run(args: argparse.Namespace) -> None:
  import jax

  from vit_jax.data.sources.opening import directory_source, open_source
  from vit_jax.data.sources.renumbered import with_classes
  from vit_jax.evaluation.fewshot import fewshot
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

  results = fewshot(
    features,
    train,
    test,
    classifier.preprocessing,
    shots=args.shots,
    seeds=args.seeds,
    batch_size=args.batch,
  )
  if args.json:
    print(json.dumps({n: dataclasses.asdict(r) for n, r in results.items()}))
    return
  rows = [
    (n, f'{r.mean:.2%}', ', '.join(f'{x:.2%}' for x in r.seeds))
    for n, r in results.items()
  ]
  header = ('shots', 'accuracy', 'of each choice')
  print(text.table(rows, header=header, right=(0, 1)))
