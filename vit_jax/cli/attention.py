"""Draws attention, position embeddings and filters of a model.

  vit-jax attention runs/flowers photo.jpg -o rollout.png
  vit-jax attention ViT-B_16.npz --model vit_b16 photos/ --distance -o d.png
  vit-jax attention runs/vit photos/ --similarity --compare runs/cait -o s.png

Three pictures need images:
  --rollout     how much each patch contributes to the class token (the default)
  --distance    mean distance in pixels over which each head of each layer
                attends
  --similarity  how similar the attention is in every two layers; with
                --compare, a curve for each model of the similarity of
                consecutive layers, which shows attention collapse
Two show parameters:
  --posemb      similarity of the position embeddings
  --filters     principal components of the patch embedding
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import json
import os
import sys
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
    help='.png, .svg or .pdf file',
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
  options.add_max_pixels_argument(parser)
  options.add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from vit_jax.analysis.plots import check_format
  from vit_jax.inference.loading import load_classifier
  from vit_jax.inference.prediction import list_images

  check_format(args.output)
  needs_images = args.kind in ('rollout', 'distance', 'similarity')
  if needs_images and not args.images:
    raise ValueError(
      f'--{args.kind} needs images: name files or folders after the weights'
    )
  if args.compare and args.kind != 'similarity':
    raise ValueError('--compare goes with --similarity')
  paths = list_images(args.images) if needs_images else []
  classifier = load_classifier(args.weights, **options.loading(args))
  classifier.max_pixels = args.max_pixels
  images = _Readable(paths)
  if args.compare:
    others = []
    for assignment in args.compare:
      model, _, weights = assignment.rpartition('=')
      others.append(load_classifier(weights, model=model or None))
    numbers = _compare([classifier, *others], images, args.output)
  else:
    numbers = _KINDS[args.kind](classifier, images, args.output)
  if args.json:
    print(json.dumps(numbers))
  else:
    print(f'wrote {", ".join(numbers.get("files", [args.output]))}')
  if images.bad:
    raise ValueError(
      f'{len(images.bad)} of {len(paths)} images could not be read'
    )


class _Readable:
  """The images that can be read; each of the others is named once.

  Attributes:
    bad: paths of the images that cannot be read.
  """

  def __init__(self, paths: Sequence[str]):
    self._paths, self.bad = paths, set()

  def readable(self) -> list[str]:
    """The paths of the images that were not found to be bad so far."""
    return [path for path in self._paths if path not in self.bad]

  def batches(
    self, classifier: 'Classifier'
  ) -> 'Iterator[tuple[list[str], np.ndarray]]':
    """Yields the paths and pixels (B, H, W, 3) of up to BATCH images."""
    import numpy as np

    from vit_jax.data.decode import BadImage
    from vit_jax.data.names import printable

    paths, images = [], []
    for path in self._paths:
      if path in self.bad:
        continue
      try:
        images.append(classifier.read_image(path))
        paths.append(printable(path))
      except (OSError, BadImage) as e:
        self.bad.add(path)
        print(f'{printable(path)}: {e}', file=sys.stderr)
      if len(images) == BATCH:
        yield paths, np.stack(images)
        paths, images = [], []
    if images:
      yield paths, np.stack(images)
    if len(self.bad) == len(self._paths):
      raise ValueError(f'none of the {len(self._paths)} images can be read')


def _collect(
  classifier: 'Classifier', images: _Readable
) -> 'Iterator[tuple[list[str], np.ndarray, Attention]]':
  """Yields paths, images (B, H, W, 3) and their attention, batch by batch."""
  from vit_jax.analysis import attend

  for paths, batch in images.batches(classifier):
    pixels = classifier.normalize(batch)
    yield (
      paths,
      batch,
      attend.collect(classifier.model, classifier.variables, pixels),
    )


def _rollout(classifier: 'Classifier', images: _Readable, output: str) -> Any:
  """Draws pages of at most MOST_ROWS images: FILE.png, FILE-2.png, ..."""
  import numpy as np

  from vit_jax.analysis import rollout

  names, pixels, maps = [], [], []
  for paths, batch, attention in _collect(classifier, images):
    layers, prefix = attention.maps, attention.num_prefix
    if attention.class_maps:
      layers = rollout.join_class_layers(layers, attention.class_maps)
      prefix = 1
    maps.append(rollout.rollout_maps(layers, attention.grid, prefix))
    pixels.append(batch)
    names += paths
  pixels, maps = np.concatenate(pixels), np.concatenate(maps)
  titles = names
  if classifier.num_classes:
    best = [
      r['predictions'][0]
      for r in classifier.classify(images.readable(), top_k=1)
    ]
    titles = [f'{p["class"]} {p["probability"]:.1%}' for p in best]
  files = []
  for start in range(0, len(names), MOST_ROWS):
    page = slice(start, start + MOST_ROWS)
    name, suffix = os.path.splitext(output)
    number = f'-{start // MOST_ROWS + 1}' if start else ''
    files.append(name + number + suffix)
    rollout.plot_rollout(
      pixels[page] / 255, maps[page], files[-1], titles[page]
    )
  return {'images': names, 'rollout': maps.tolist(), 'files': files}


def _mean_over_images(
  classifier: 'Classifier',
  images: _Readable,
  function: 'Callable[[Attention], Any]',
) -> tuple[Any, 'Attention']:
  """The mean over images of a function of the attention; the last attention."""
  total, count, attention = 0.0, 0, None
  for _, batch, attention in _collect(classifier, images):
    total += len(batch) * function(attention)
    count += len(batch)
  assert attention is not None  # `_collect` has refused an empty list
  return total / count, attention


def _distance(classifier: 'Classifier', images: _Readable, output: str) -> Any:
  from vit_jax.analysis import distance

  def patch_size(attention):
    """(height, width) in pixels from one patch to the next."""
    height, width = classifier.preprocessing.size
    return height / attention.grid[0], width / attention.grid[1]

  mean, attention = _mean_over_images(
    classifier,
    images,
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


def _layer_similarity(classifier: 'Classifier', images: _Readable) -> Any:
  from vit_jax.analysis import similarity

  mean, _ = _mean_over_images(
    classifier,
    images,
    lambda attention: similarity.layer_similarity(attention.maps),
  )
  return mean


def _similarity(
  classifier: 'Classifier', images: _Readable, output: str
) -> Any:
  from vit_jax.analysis import similarity

  mean = _layer_similarity(classifier, images)
  similarity.plot_layers(mean, output, title=classifier.name)
  return {'similarity': mean.tolist()}


def _compare(
  classifiers: 'Sequence[Classifier]', images: _Readable, output: str
) -> Any:
  from vit_jax.analysis import similarity

  curves = {}
  for classifier in classifiers:
    name = classifier.name
    while name in curves:
      name += ' (again)'
    mean = _layer_similarity(classifier, images)
    curves[name] = similarity.adjacent_similarity(mean)
  similarity.plot_curves(curves, output)
  return {'similarity': {k: v.tolist() for k, v in curves.items()}}


def _posemb(classifier: 'Classifier', images: _Readable, output: str) -> Any:
  import jax

  from vit_jax.analysis import attend, posemb

  del images  # the position table does not depend on images
  table = posemb.find_table(classifier.variables)
  inputs = jax.ShapeDtypeStruct(
    (1, *classifier.preprocessing.size, 3), 'float32'
  )
  _, out = jax.eval_shape(
    lambda v, x: classifier.model.apply(v, x, train=False),
    classifier.variables,
    inputs,
  )
  grid, prefix = attend.find_grid(len(table), out['stem'].shape[1:3])
  similarity = posemb.position_similarity(table, grid, prefix)
  posemb.plot_similarity(similarity, output, title=classifier.name)
  return {'similarity': similarity.tolist()}


def _filters(classifier: 'Classifier', images: _Readable, output: str) -> Any:
  from vit_jax.analysis import filters

  del images  # the filters do not depend on images
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
