"""Draws what a model attends to.

  vit-jax attention runs/flowers photo.jpg -o rollout.png
  vit-jax attention ViT-B_16.npz --model vit_b16 photos/ --distance -o d.png
  vit-jax attention runs/vit photos/ --similarity --compare runs/cait -o s.png

Rollout (the default): what the class token is made of, over each image.
Distance: how far each head looks, by layer. Similarity: whether layers attend
alike, of every two layers of one model, or with --compare each layer and the
one before it, a curve a model (attention collapse). These three need images;
the others look at parameters only: similarity of position embeddings, principal
components of the patch embedding.
"""

import json

from vit_jax.cli import options

HELP = 'pictures of attention, positions and filters'
BATCH = 8  # images whose maps are held at once
MOST_ROWS = 32  # images in one rollout picture


def add_arguments(parser):
  parser.add_argument(
    'weights', help='workdir, .npz, .pth, .safetensors, hub name'
  )
  parser.add_argument(
    'images', nargs='*', metavar='IMAGE', help='image files or directories'
  )
  parser.add_argument('-o', '--output', required=True, metavar='FILE.png')
  kinds = parser.add_mutually_exclusive_group()
  for kind, text in (
    ('rollout', 'attention rollout over the images (the default)'),
    ('distance', 'mean attention distance of every head'),
    ('similarity', 'similarity of the attention of every two layers'),
    ('posemb', 'similarity of position embeddings'),
    ('filters', 'principal components of the patch embedding'),
  ):
    kinds.add_argument(
      f'--{kind}', dest='kind', action='store_const', const=kind, help=text
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


def run(args):
  from vit_jax.inference import classifier as classifier_lib

  if not args.output.lower().endswith('.png'):
    raise ValueError(f'{args.output}: the picture must be a .png')
  needs_images = args.kind in ('rollout', 'distance', 'similarity')
  if needs_images and not args.images:
    raise ValueError(f'--{args.kind} needs images')
  if args.compare and args.kind != 'similarity':
    raise ValueError('--compare goes with --similarity')
  paths = classifier_lib.list_images(args.images) if needs_images else []
  classifier = classifier_lib.load_classifier(
    args.weights, **options.loading(args)
  )
  if args.compare:
    others = []
    for text in args.compare:
      model, equals, weights = text.rpartition('=')
      others.append(
        classifier_lib.load_classifier(
          weights, **(dict(model=model) if equals else {})
        )
      )
    numbers = _compare([classifier, *others], paths, args.output)
  else:
    numbers = _KINDS[args.kind](classifier, paths, args.output)
  if args.json:
    print(json.dumps(numbers))
  else:
    print(f'wrote {args.output}')


def _collect(classifier, paths):
  """(uint8 images, Attention) of a few images at a time."""
  import numpy as np

  from vit_jax.analysis import attend
  from vit_jax.data.transforms import BadImage
  from vit_jax.training import augment

  for start in range(0, len(paths), BATCH):
    images = []
    for path in paths[start : start + BATCH]:
      try:
        images.append(classifier.read_image(path))
      except (OSError, BadImage) as e:
        raise ValueError(f'{path}: {e}') from e
    images = np.stack(images)
    yield (
      images,
      attend.collect(
        classifier.model,
        classifier.variables,
        augment.normalize(images, classifier.normalize),
      ),
    )


def _rollout(classifier, paths, output):
  import numpy as np

  from vit_jax.analysis import rollout

  if len(paths) > MOST_ROWS:
    raise ValueError(
      f'{len(paths)} images do not fit one picture: give at most {MOST_ROWS}'
    )
  every, maps = [], []
  for images, found in _collect(classifier, paths):
    layers, prefix = found.maps, found.num_prefix
    if found.class_maps:
      layers = rollout.join_class_layers(layers, found.class_maps)
      prefix = 1
    maps.append(rollout.rollout_maps(layers, found.grid, prefix))
    every.append(images)
  every, maps = np.concatenate(every), np.concatenate(maps)
  titles = paths
  if classifier.num_classes:
    best = [r['predictions'][0] for r in classifier.classify(every, top_k=1)]
    titles = [f'{p["class"]} {p["probability"]:.1%}' for p in best]
  rollout.plot_rollout(every / 255, maps, output, titles)
  return {'images': paths, 'rollout': maps.tolist()}


def _mean(classifier, paths, function):
  """Mean over images of a function of Attention."""
  total, count = 0.0, 0
  for images, found in _collect(classifier, paths):
    total += len(images) * function(found)
    count += len(images)
  return total / count, found


def _distance(classifier, paths, output):
  from vit_jax.analysis import distance

  # Pixels between patches: those of the image over those of the grid.
  pixels = lambda found: tuple(
    n / g for n, g in zip(classifier.image_size, found.grid, strict=True)
  )
  mean, found = _mean(
    classifier,
    paths,
    lambda found: distance.mean_attention_distance(
      found.maps, found.grid, pixels(found), found.num_prefix
    ),
  )
  uniform = distance.uniform_distance(found.grid, pixels(found))
  distance.plot_distance(mean, output, uniform=uniform, title=classifier.name)
  return {'distance': mean.tolist(), 'uniform': uniform}


def _similarity(classifier, paths, output):
  from vit_jax.analysis import similarity

  mean, _ = _mean(
    classifier, paths, lambda found: similarity.layer_similarity(found.maps)
  )
  similarity.plot_layers(mean, output, title=classifier.name)
  return {'similarity': mean.tolist()}


def _compare(classifiers, paths, output):
  from vit_jax.analysis import similarity

  curves = {}
  for classifier in classifiers:
    mean, _ = _mean(
      classifier, paths, lambda found: similarity.layer_similarity(found.maps)
    )
    name = classifier.name
    while name in curves:
      name += ' (again)'
    curves[name] = similarity.adjacent_similarity(mean)
  similarity.plot_curves(curves, output)
  return {'similarity': {k: v.tolist() for k, v in curves.items()}}


def _posemb(classifier, paths, output):
  import jax

  from vit_jax.analysis import attend, posemb

  table = posemb.find_table(classifier.variables)
  images = jax.ShapeDtypeStruct((1, *classifier.image_size, 3), 'float32')
  out = jax.eval_shape(
    lambda v, x: classifier.model.apply(v, x, train=False),
    classifier.variables,
    images,
  )[1]
  grid, prefix = attend.find_grid(len(table), out['stem'].shape[1:3])
  similarity = posemb.position_similarity(table, grid, prefix)
  posemb.plot_similarity(similarity, output, title=classifier.name)
  return {'similarity': similarity.tolist()}


def _filters(classifier, paths, output):
  from vit_jax.analysis import filters

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
