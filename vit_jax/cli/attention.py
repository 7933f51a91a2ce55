"""Draws attention, position embeddings and filters of a model.

  vit-jax attention runs/flowers photo.jpg -o rollout.png
  vit-jax attention ViT-B_16.npz --model vit_b16 photos/ --distance -o d.png
  vit-jax attention runs/vit photos/ --similarity --compare runs/cait -o s.png

Three pictures need images:
  --rollout     how much each patch contributes to the class token (the default)
  --distance    mean distance in pixels over which each head of each layer
                attends
  --similarity  how similar the attention of two layers is, for every two
  layers;
                with --compare, a curve for each model of the similarity of
                consecutive layers, which shows attention collapse
Two show parameters:
  --posemb      similarity of the position embeddings
  --filters     principal components of the patch embedding
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import json
import typing
from typing import Any

from vit_jax.cli import options

if typing.TYPE_CHECKING:
  import numpy as np

  from vit_jax.analysis.attend import Attention
  from vit_jax.inference.classifier import Classifier

HELP = 'draw attention, position embeddings and filters'
BATCH = 8  # images whose attention maps are in memory at once
MOST_ROWS = 32  # images in one rollout picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    'images', nargs='*', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument(
    '-o', '--output', required=True, metavar='FILE.png', help='the picture'
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
  parser.add_argument(
    '--json', action='store_true', help='also print the numbers as JSON'
  )
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.inference.loading import load_classifier
  from vit_jax.inference.prediction import list_images

  if not args.output.lower().endswith('.png'):
    raise ValueError(f'{args.output}: the picture must be a .png')
  needs_images = args.kind in ('rollout', 'distance', 'similarity')
  if needs_images and not args.images:
    raise ValueError(f'--{args.kind} needs images')
  if args.compare and args.kind != 'similarity':
    raise ValueError('--compare goes with --similarity')
  paths = list_images(args.images) if needs_images else []
  classifier = load_classifier(args.weights, **options.loading(args))
  if args.compare:
    others = []
    for assignment in args.compare:
      model, _, weights = assignment.rpartition('=')
      others.append(load_classifier(weights, model=model or None))
    numbers = _compare([classifier, *others], paths, args.output)
  else:
    numbers = _KINDS[args.kind](classifier, paths, args.output)
  if args.json:
    print(json.dumps(numbers))
  else:
    print(f'wrote {args.output}')


def _collect(
  classifier: 'Classifier', paths: Sequence[str]
) -> Iterator[tuple['np.ndarray', 'Attention']]:
  """Yields images (B, H, W, 3) and their attention, up to BATCH at a time."""
  import numpy as np

  from vit_jax.analysis import attend
  from vit_jax.data.decode import BadImage

  for start in range(0, len(paths), BATCH):
    images = []
    for path in paths[start : start + BATCH]:
      try:
        images.append(classifier.read_image(path))
      except (OSError, BadImage) as e:
        raise ValueError(f'{path}: {e}') from e
    batch = np.stack(images)
    yield (
      batch,
      attend.collect(
        classifier.model, classifier.variables, classifier.normalize(batch)
      ),
    )


def _rollout(classifier: 'Classifier', paths: list[str], output: str) -> Any:
  import numpy as np

  from vit_jax.analysis import rollout

  if len(paths) > MOST_ROWS:
    raise ValueError(
      f'{len(paths)} images do not fit one picture: give at most {MOST_ROWS}'
    )
  batches, maps = [], []
  for batch, attention in _collect(classifier, paths):
    layers, prefix = attention.maps, attention.num_prefix
    if attention.class_maps:
      layers = rollout.join_class_layers(layers, attention.class_maps)
      prefix = 1
    maps.append(rollout.rollout_maps(layers, attention.grid, prefix))
    batches.append(batch)
  images, maps = np.concatenate(batches), np.concatenate(maps)
  titles = paths
  if classifier.num_classes:
    best = [r['predictions'][0] for r in classifier.classify(paths, top_k=1)]
    titles = [f'{p["class"]} {p["probability"]:.1%}' for p in best]
  rollout.plot_rollout(images / 255, maps, output, titles)
  return {'images': paths, 'rollout': maps.tolist()}


def _mean_over_images(
  classifier: 'Classifier',
  paths: Sequence[str],
  function: 'Callable[[Attention], Any]',
) -> tuple[Any, 'Attention']:
  """The mean over images of a function of the attention; the last attention."""
  total, count, attention = 0.0, 0, None
  for images, attention in _collect(classifier, paths):
    total += len(images) * function(attention)
    count += len(images)
  assert attention is not None  # `run` has refused an empty list of images
  return total / count, attention


def _distance(classifier: 'Classifier', paths: list[str], output: str) -> Any:
  from vit_jax.analysis import distance

  def patch_size(attention):
    """(height, width) in pixels from one patch to the next."""
    height, width = classifier.preprocessing.size
    return height / attention.grid[0], width / attention.grid[1]

  mean, attention = _mean_over_images(
    classifier,
    paths,
    lambda attention: distance.mean_attention_distance(
      attention.maps,
      attention.grid,
      patch_size(attention),
      attention.num_prefix,
    ),
  )
  uniform = distance.uniform_distance(attention.grid, patch_size(attention))
  distance.plot_distance(mean, output, uniform=uniform, title=classifier.name)
  return {'distance': mean.tolist(), 'uniform': uniform}


def _layer_similarity(classifier: 'Classifier', paths: list[str]) -> Any:
  from vit_jax.analysis import similarity

  mean, _ = _mean_over_images(
    classifier,
    paths,
    lambda attention: similarity.layer_similarity(attention.maps),
  )
  return mean


def _similarity(classifier: 'Classifier', paths: list[str], output: str) -> Any:
  from vit_jax.analysis import similarity

  mean = _layer_similarity(classifier, paths)
  similarity.plot_layers(mean, output, title=classifier.name)
  return {'similarity': mean.tolist()}


def _compare(
  classifiers: 'Sequence[Classifier]', paths: list[str], output: str
) -> Any:
  from vit_jax.analysis import similarity

  curves = {}
  for classifier in classifiers:
    name = classifier.name
    while name in curves:
      name += ' (again)'
    mean = _layer_similarity(classifier, paths)
    curves[name] = similarity.adjacent_similarity(mean)
  similarity.plot_curves(curves, output)
  return {'similarity': {k: v.tolist() for k, v in curves.items()}}


def _posemb(classifier: 'Classifier', paths: list[str], output: str) -> Any:
  import jax

  from vit_jax.analysis import attend, posemb

  del paths  # the position table does not depend on images
  table = posemb.find_table(classifier.variables)
  images = jax.ShapeDtypeStruct(
    (1, *classifier.preprocessing.size, 3), 'float32'
  )
  _, out = jax.eval_shape(
    lambda v, x: classifier.model.apply(v, x, train=False),
    classifier.variables,
    images,
  )
  grid, prefix = attend.find_grid(len(table), out['stem'].shape[1:3])
  similarity = posemb.position_similarity(table, grid, prefix)
  posemb.plot_similarity(similarity, output, title=classifier.name)
  return {'similarity': similarity.tolist()}


def _filters(classifier: 'Classifier', paths: list[str], output: str) -> Any:
  from vit_jax.analysis import filters

  del paths  # the filters do not depend on images
  components, shares = filters.filter_components(
    filters.find_kernel(classifier.variables)
  )
  filters.plot_filters(components, output, shares=shares, title=classifier.name)
  return {'shares': shares.tolist()}


_KINDS = {
  'rollout': _rollout,
  'distance': _distance,
  'similarity': _similarity,
  'posemb': _posemb,
  'filters': _filters,
}
