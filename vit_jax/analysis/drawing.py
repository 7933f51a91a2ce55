"""Draws the analyses of a classifier: the pictures of `vit-jax attention`."""

from collections.abc import Callable, Iterator, Sequence
import os
import pathlib
import re
import sys
import textwrap
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit_jax.analysis import (
  attend,
  distance,
  filters,
  overlay,
  posemb,
  rollout,
  similarity,
)
from vit_jax.analysis.attend import Attention
from vit_jax.analysis.views import View, shown_layers
from vit_jax.data.decode import BadImage
from vit_jax.data.names import printable
from vit_jax.data.transforms import eval_window
from vit_jax.files import as_path
from vit_jax.inference.classifier import Classifier

BATCH = 8  # images whose attention maps are in memory at once, at most
_BYTES = 2**29  # of the attention maps in memory at once
MOST_IMAGES = 32  # of one page of rollouts
_SIDE = 480  # pixels of the longer side of a photo in a figure


class Images:
  """The images that can be read; each of the others is named once.

  Attributes:
    paths: of all images.
    bad: paths of the images that cannot be read.
  """

  def __init__(self, paths: Sequence[str]):
    self.paths, self.bad = paths, set()

  def readable(self) -> list[str]:
    """The paths of the images that were not found to be bad so far."""
    return [path for path in self.paths if path not in self.bad]

  def batches(
    self, classifier: Classifier
  ) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields the paths and pixels (B, H, W, 3) of up to BATCH images."""
    size = attend.bytes_per_image(
      classifier.model, classifier.variables, classifier.preprocessing.size
    )
    most = max(1, min(BATCH, _BYTES // max(size, 1)))
    paths, images = [], []
    for path in self.readable():
      try:
        images.append(classifier.read_image(path))
        paths.append(path)
      except (OSError, BadImage) as e:
        self.bad.add(path)
        print(f'{printable(path)}: {e}', file=sys.stderr)
      if len(images) == most:
        yield paths, np.stack(images)
        paths, images = [], []
    if images:
      yield paths, np.stack(images)
    if len(self.bad) == len(self.paths):
      raise ValueError(f'none of the {len(self.paths)} images can be read')


def label(classifier: Classifier) -> str:
  """The model and the last name of its weights: 'vit_b16 (ViT-B_16.npz)'.

  The runs of an ablation are called seed0, seed1, ... in the folders of their
  variants, whose names are taken too.
  """
  folder, file = os.path.split(classifier.source.rstrip('/'))
  if re.fullmatch(r'seed\d+', file):
    file = os.path.join(os.path.basename(folder), file)
  return f'{classifier.name} ({printable(file)})' if file else classifier.name


def _title(what: str, classifier: Classifier, images: int | None = None) -> str:
  count = '' if images is None else f', {images:,} image{"s" * (images != 1)}'
  return f'{what} of {label(classifier)}{count}'


def _collect(
  classifier: Classifier, images: Images
) -> Iterator[tuple[list[str], Attention]]:
  """Yields paths and their attention, batch by batch."""
  for paths, batch in images.batches(classifier):
    pixels = classifier.normalize(batch)
    yield (
      paths,
      attend.collect(classifier.model, classifier.variables, pixels),
    )


def draw_rollout(
  classifier: Classifier,
  images: Images,
  output: str,
  view: View | None = None,
) -> dict[str, Any]:
  """Draws pages of at most MOST_IMAGES images: FILE.png, FILE-2.png, ...

  Args:
    classifier: the model.
    images: what it is applied to.
    output: .png, .jpg, .svg or .pdf file to write.
    view: which attention is shown; None is the rollout.

  Returns:
    'images': their paths; 'rollout': (B, h, w); 'outliers': the fraction of the
    patches that are outliers; 'files': the pages.
  """
  view = view or View()
  paths, maps, name = [], [], ''
  for batch, attention in _collect(classifier, images):
    name = view.describe(len(attention.maps) + len(attention.class_maps))
    layers, prefix = shown_layers(attention, view)
    residual = 0.5 if len(layers) > 1 else 0.0
    maps.append(
      rollout.rollout_maps(layers, attention.grid, prefix, residual=residual)
    )
    paths += batch
  maps = np.concatenate(maps)
  share = float(rollout.outliers(maps).mean())
  shown = rollout.fill_outliers(maps) if view.fill else maps
  titles = _titles(classifier, images)
  if view.overlays:
    _write_overlays(classifier, paths, shown, view.overlays)
  files, pages = [], -(-len(paths) // MOST_IMAGES)
  for start in range(0, len(paths), MOST_IMAGES):
    page = range(start, min(start + MOST_IMAGES, len(paths)))
    stem, suffix = os.path.splitext(output)
    number = f'-{start // MOST_IMAGES + 1}' if start else ''
    files.append(stem + number + suffix)
    overlay.plot_maps(
      [
        overlay.MapOfPhoto(*_on_photo(classifier, paths[i], x), *titles[i])
        for i, x in zip(page, shown[page.start : page.stop], strict=True)
      ],
      files[-1],
      name=name,
      title=_title('Attention', classifier, len(paths))
      + (f', page {len(files)} of {pages}' if pages > 1 else ''),
    )
  return {
    'images': [printable(path) for path in paths],
    'rollout': maps.tolist(),
    'outliers': share,
    'files': files,
  }


def _on_photo(
  classifier: Classifier, path: str, heat: np.ndarray, side: int | None = _SIDE
) -> tuple[np.ndarray, np.ndarray]:
  """A photo (H, W, 3), its longer side at most `side`, and its map (H, W)."""
  photo = classifier.read_photo(path)
  if side is not None:
    small = Image.fromarray(photo)
    small.thumbnail((side, side))
    photo = np.asarray(small)
    scale = max(1, side // (2 * max(photo.shape[:2])))
    # A photo of a few pixels is enlarged, so that its map is smooth on it.
    photo = photo.repeat(scale, axis=0).repeat(scale, axis=1)
  height, width = photo.shape[:2]
  window = eval_window(height, width, classifier.preprocessing)
  return photo, overlay.to_photo(heat, (height, width), window)


def _write_overlays(
  classifier: Classifier, paths: Sequence[str], maps: np.ndarray, folder: str
) -> None:
  """Writes FOLDER/NAME-rollout.png for each photo, at its own resolution."""
  directory = as_path(folder)
  directory.mkdir(parents=True, exist_ok=True)
  names: set[str] = set()
  for path, heat in zip(paths, maps, strict=True):
    stem = name = pathlib.PurePath(path).stem
    while name in names:  # photos of several folders may have the same name
      name = f'{stem}-{len(names)}'
    names.add(name)
    pair = _on_photo(classifier, path, heat, side=None)
    picture = Image.fromarray(overlay.overlay(*pair))
    with (directory / f'{name}-rollout.png').open('wb') as file:
      picture.save(file, 'PNG')


def _titles(classifier: Classifier, images: Images) -> list[tuple[str, bool]]:
  """The title of each image, and whether its prediction is known to be wrong.

  A title has the file, the true class if the image's folder is the name of a
  class, and the predicted class if the model has a head.
  """
  paths = images.readable()
  folders = [os.path.basename(os.path.dirname(path)) for path in paths]
  names = [_short(printable(os.path.basename(path))) for path in paths]
  if not classifier.num_classes:
    pairs = zip(folders, names, strict=True)
    return [(f'{printable(x)}/{name}'.lstrip('/'), False) for x, name in pairs]
  result = []
  predictions = classifier.classify(paths, top_k=1)
  for folder, name, values in zip(folders, names, predictions, strict=True):
    best = values['predictions'][0]
    known = folder in (classifier.classes or ())
    text = f'predicted {best["class"]} {best["probability"]:.0%}'
    text = f'{folder}, {text}' if known else text
    result.append((f'{name}\n{text}', known and folder != best['class']))
  return result


def _short(name: str, most: int = 36) -> str:
  """A name of a file that fits above its picture."""
  half = most // 2 - 1
  return name if len(name) <= most else f'{name[:half]}...{name[-half:]}'


def _mean_over_images(
  classifier: Classifier,
  images: Images,
  function: Callable[[Attention], Any],
) -> tuple[Any, Attention, int]:
  """The mean of a function of the attention; the last attention; the count."""
  total, count, attention = 0.0, 0, None
  for paths, attention in _collect(classifier, images):
    total += len(paths) * function(attention)
    count += len(paths)
  assert attention is not None  # `batches` has refused an empty list
  return total / count, attention, count


def draw_distance(
  classifier: Classifier, images: Images, output: str
) -> dict[str, Any]:
  """Draws the mean attention distance of each head; 'distance' is (L, H)."""

  def patch_size(attention):
    """(height, width) in pixels from one patch to the next."""
    height, width = classifier.preprocessing.size
    return height / attention.grid[0], width / attention.grid[1]

  mean, attention, count = _mean_over_images(
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
  distance.plot_distance(
    mean, output, uniform=uniform, title=_title('Heads', classifier, count)
  )
  return {'distance': mean.tolist(), 'uniform': uniform}


def draw_similarity(
  classifier: Classifier, images: Images, output: str
) -> dict[str, Any]:
  """Draws how similar the attention is in every two layers, (L, L)."""
  mean, _, count = _layer_similarity(classifier, images)
  similarity.plot_layers(
    mean, output, title=_title('Attention', classifier, count)
  )
  return {'similarity': mean.tolist()}


def _layer_similarity(classifier: Classifier, images: Images):
  return _mean_over_images(
    classifier,
    images,
    lambda attention: similarity.layer_similarity(attention.maps),
  )


def draw_collapse(
  classifiers: Sequence[Classifier], images: Images, output: str
) -> dict[str, Any]:
  """Draws for each model the similarity of consecutive layers."""
  curves, count = {}, 0
  for classifier in classifiers:
    name = label(classifier)
    while name in curves:
      name += ' (again)'
    mean, _, count = _layer_similarity(classifier, images)
    curves[name] = similarity.adjacent_similarity(mean)
  similarity.plot_curves(
    curves,
    output,
    title=f'Attention similarity of consecutive blocks, {count:,} images',
  )
  return {'similarity': {k: v.tolist() for k, v in curves.items()}}


def draw_positions(classifier: Classifier, output: str) -> dict[str, Any]:
  """Draws the similarity of the position embeddings, (h, w, h, w)."""
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
  values = posemb.position_similarity(table, grid, prefix)
  posemb.plot_similarity(
    values, output, title=_title('Position embeddings', classifier)
  )
  return {'similarity': values.tolist(), 'locality': posemb.locality(values)}


def draw_filters(classifier: Classifier, output: str) -> dict[str, Any]:
  """Draws the principal components of the filters of the patch embedding."""
  components, shares = filters.filter_components(
    filters.find_kernel(classifier.variables)
  )
  note = filters.why_nothing_to_see(components, shares)
  filters.plot_filters(
    components,
    output,
    shares=shares,
    title='\n'.join([_title('Filters', classifier), *textwrap.wrap(note, 70)]),
  )
  return {'shares': shares.tolist(), 'note': note}
