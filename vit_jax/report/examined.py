"""What the model of a run says about its test images."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from vit_jax.analysis import attend, overlay, rollout
from vit_jax.data.sources.source import Source, Subset
from vit_jax.evaluation.predictions import Predictions
from vit_jax.evaluation.scores import confusion_matrix
from vit_jax.inference.accuracy import classify_source, predict_labeled
from vit_jax.inference.classifier import Classifier, ImageClassifier
from vit_jax.inference.loading import load_classifier
from vit_jax.recipe.inputs import open_eval_sets
from vit_jax.report.pictures import data_url
from vit_jax.report.runs import Run

_THUMBNAIL = 96  # pixels
_PICTURE = 224
_PAIRS = 12  # pairs of classes that are confused
_OF_A_PAIR = 4  # images of each
_EXAMPLES = 12  # best, and worst
_MOST_CLASSES = 60  # of a confusion matrix; more are not legible


@dataclasses.dataclass(frozen=True)
class Examined:
  """A run's model, and what it says about labeled images.

  Attributes:
    classifier: the model of the newest step.
    predictions: for the images that were examined.
    images: number of images that the data has.
  """

  classifier: ImageClassifier
  predictions: Predictions
  images: int


def examine(
  run: Run,
  *,
  data: str = '',
  source: str = '',
  split: str | None = None,
  flat: bool = False,
  most: int = 2000,
  batch_size: int = 64,
) -> Examined:
  """Classifies test images by the model of a run's newest step.

  Args:
    run: the run.
    data, source, split, flat: the images, see `predict_labeled`; by default
      those of the first eval set of the recipe.
    most: number of images. The order of a split is random, so the first ones
      are a random sample.
    batch_size: number of images in a batch.

  Raises:
    ValueError: the weights or the images cannot be read.
  """
  if data or source:
    classifier, predictions = predict_labeled(
      run.workdir,
      data,
      source=source,
      split=split,
      flat=flat,
      batch_size=batch_size,
    )
    return Examined(classifier, predictions, len(predictions.source))
  classifier = load_classifier(run.workdir)
  sets = open_eval_sets(
    run.config(), classifier.num_classes, classifier.classes
  )
  if not sets:
    raise ValueError(
      'the recipe holds out no images: name some with --data or --source'
    )
  images = next(iter(sets.values()))
  sample: Source = images
  if most < len(images):
    sample = Subset(images, 0, most, f'{images.name}[:{most}]')
  predictions = classify_source(classifier, sample, batch_size=batch_size)
  return Examined(classifier, predictions, len(images))


def describe(examined: Examined) -> dict[str, Any]:
  """Scores, calibration, confusions and examples, as JSON values.

  Returns:
    'summary', 'data', 'images', 'of'; 'calibration', one entry for each bin
    with images; 'best' and 'worst', entries of images; and for images of one
    label 'confusion' and 'pairs'.
  """
  p = examined.predictions
  names = [examined.classifier.class_name(i) for i in range(p.num_classes)]
  curve = p.calibration()
  order = np.argsort(p.losses, kind='stable')
  order = order[p.labeled[order]]
  show = lambda rows: [_example(examined, int(row), names) for row in rows]
  result = {
    'summary': p.summary(),
    'data': p.source.name,
    'images': len(p.index),
    'of': examined.images,
    'calibration': [
      {'confidence': float(c), 'accuracy': float(a), 'images': int(n)}
      for c, a, n in zip(
        curve.confidence, curve.accuracy, curve.count, strict=True
      )
      if n
    ],
    'best': show(order[:_EXAMPLES]),
    'worst': show(order[::-1][:_EXAMPLES]),
  }
  if p.labels.ndim == 1:
    result['pairs'] = _pairs(examined, names)
    if p.num_classes <= _MOST_CLASSES:
      matrix = confusion_matrix(p.labels, p.best[:, 0], p.num_classes)
      result['confusion'] = [
        {
          'label': names[row],
          'predicted': names[column],
          'images': int(matrix[row, column]),
          'share': float(matrix[row, column] / max(1, matrix[row].sum())),
        }
        for row, column in np.ndindex(matrix.shape)
      ]
  return result


def _pairs(examined: Examined, names: Sequence[str]) -> list[dict[str, Any]]:
  """The pairs of classes that are confused most, with examples."""
  p = examined.predictions
  entries = zip(*(x.tolist() for x in p.confusion()), strict=True)
  wrong = sorted(
    ((n, a, b) for a, b, n in entries if a != b),
    key=lambda x: (-x[0], x[1:]),
  )
  result = []
  for count, label, predicted in wrong[:_PAIRS]:
    is_pair = (p.labels == label) & (p.best[:, 0] == predicted)
    rows = np.flatnonzero(is_pair)
    rows = rows[np.argsort(-p.losses[rows], kind='stable')][:_OF_A_PAIR]
    result.append(
      {
        'label': names[label],
        'predicted': names[predicted],
        'images': count,
        'examples': [_example(examined, int(row), names) for row in rows],
      }
    )
  return result


def _example(
  examined: Examined, row: int, names: Sequence[str]
) -> dict[str, Any]:
  """One image with its label and prediction."""
  p = examined.predictions
  label = p.labels[row]
  labels = [int(label)] if p.labels.ndim == 1 else np.flatnonzero(label)
  return {
    'name': p.source.describe(int(p.index[row])),
    'label': ', '.join(names[int(c)] for c in labels),
    'predicted': names[int(p.best[row, 0])],
    'probability': float(p.confidence[row, 0]),
    'right': bool(p.right[row]),
    'url': data_url(read_input(examined, row), _THUMBNAIL),
  }


def read_input(examined: Examined, row: int) -> np.ndarray:
  """The pixels (H, W, 3) that the model gets of one of the images."""
  p = examined.predictions
  example = p.source[int(p.index[row])]
  return np.asarray(examined.classifier.read_image(example['image']))


def choose(examined: Examined, count: int) -> list[int]:
  """Rows of images to look at: of other classes each, right and wrong ones."""
  p = examined.predictions
  rows = np.flatnonzero(p.labeled)
  if p.labels.ndim == 1:
    # The first image of each class, then the second of each, and so on.
    turn = np.zeros(len(rows), int)
    seen: dict[int, int] = {}
    for i, label in enumerate(p.labels[rows].tolist()):
      turn[i] = seen[label] = seen.get(label, -1) + 1
    rows = rows[np.argsort(turn, kind='stable')]
  wrong = [int(r) for r in rows if not p.right[r]][: count // 3]
  right = [int(r) for r in rows if p.right[r]][: count - len(wrong)]
  return [*right, *wrong]


def attention_pictures(
  examined: Examined, rows: Sequence[int]
) -> tuple[list[dict[str, Any]], attend.Attention, np.ndarray]:
  """Images with their rollout.

  Args:
    examined: a run's model and images.
    rows: of the images.

  Returns:
    An entry for each image, with 'url' and 'rollout', pictures; the attention
    of the images; and their pixels (B, H, W, 3).

  Raises:
    ValueError: the model has no attention maps.
  """
  classifier = examined.classifier
  if not isinstance(classifier, Classifier):
    raise ValueError('an exported program has no attention maps')
  pixels = np.stack([read_input(examined, row) for row in rows])
  attention = attend.collect(
    classifier.model, classifier.variables, classifier.normalize(pixels)
  )
  layers, prefix = attention.maps, attention.num_prefix
  if attention.class_maps:
    layers = rollout.join_class_layers(layers, attention.class_maps)
    prefix = 1
  maps = rollout.rollout_maps(layers, attention.grid, prefix)
  p = examined.predictions
  names = [classifier.class_name(i) for i in range(p.num_classes)]
  entries = []
  for row, image, heat in zip(rows, pixels, maps, strict=True):
    entry = _example(examined, row, names)
    scale = max(1, math.ceil(160 / max(image.shape[:2])))
    large = np.asarray(image).repeat(scale, 0).repeat(scale, 1)
    entry['url'] = data_url(image, _PICTURE)
    fine = overlay.to_photo(heat, large.shape[:2])
    entry['rollout'] = data_url(overlay.overlay(large, fine), _PICTURE)
    entries.append(entry)
  return entries, attention, np.asarray(jax.device_get(pixels))
