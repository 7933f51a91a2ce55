"""Few-shot linear probe: how good frozen features are (big_vision's protocol).

Features are the model's `pre_logits`. For each number of images per class and
each seed, a support set is drawn from the training images. Its features are
standardized and get a constant feature; a ridge regression on targets of +-1 is
solved in closed form, and the class of a test image is the largest output.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np

from vit_jax.data import loader
from vit_jax.data.sources.source import Source
from vit_jax.preprocessing import Preprocessing
from vit_jax.training.progress import progress_bar

SHOTS = (1, 5, 10, 25)
BIAS = 100.0  # the constant feature
# (B, height, width, 3) pixels in [0, 255] -> features (B, D).
Features = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FewshotResult:
  """Accuracy with one number of images per class.

  Attributes:
    mean: over the seeds.
    seeds: accuracy with each support set.
  """

  mean: float
  seeds: tuple[float, ...]


def support_indices(
  labels: np.ndarray, num_classes: int, shots: int, seed: int
) -> np.ndarray:
  """Which training examples a probe learns from, as big_vision draws them.

  Args:
    labels: (N,), of the training examples.
    num_classes: C.
    shots: examples of each class; of a smaller class, all.
    seed: of the draw.

  Returns:
    Indices into the training examples, in the order of the classes.
  """
  rng = np.random.default_rng(seed)
  return np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels == c))[:shots]
      for c in range(num_classes)
    ]
  )


def ridge_scores(
  features: np.ndarray,
  labels: np.ndarray,
  test_features: np.ndarray,
  num_classes: int,
  *,
  l2: float = 2.0**10,
) -> np.ndarray:
  """Scores that a ridge regression gives to test features.

  The mean of the support set is subtracted from the features, they are divided
  by its standard deviation, and get a constant feature. Targets are 1 for the
  class and -1 for the others.

  Args:
    features: of the support set, (N, D).
    labels: of the support set, int (N,).
    test_features: (M, D).
    num_classes: C.
    l2: weight of the penalty, which the constant feature's weight has too.

  Returns:
    (M, C), float64; the largest is the predicted class.
  """
  x = np.asarray(features, np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  with_bias = lambda a: np.concatenate(
    [(np.asarray(a, np.float64) - mean) / std, np.full((len(a), 1), BIAS)],
    axis=1,
  )
  x, test = with_bias(x), with_bias(test_features)
  y = 2.0 * np.eye(num_classes)[np.asarray(labels)] - 1.0
  # Both forms have the same solution; the smaller matrix is inverted.
  if x.shape[0] < x.shape[1]:
    weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
  else:
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  return test @ weights


def probe_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
  """The protocol's: both sides to 8/7 of the image size, center crop."""
  return dataclasses.replace(preprocessing, crop=7 / 8, crop_resize='squash')


def extract_features(
  features: Features,
  source: Source,
  preprocessing: Preprocessing,
  *,
  batch_size: int = 32,
  threads: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
  """Features (N, D) and labels (N,) of a source, in its order.

  Args:
    features: the model; every batch has `batch_size` images.
    source: has one label for each image.
    preprocessing: of the model; see `probe_preprocessing` for what is used.
    batch_size: images that go through the model together.
    threads: that read and decode.

  Raises:
    ValueError: an image cannot be read, or the source has several labels for
      each image.
  """
  if source.multi_label:
    raise ValueError(
      f'{source.name} has several labels for each image, and a few-shot probe '
      'needs one: give a data set with one class for each image'
    )
  rows, labels = [], []
  with loader.eval_batches(
    source,
    probe_preprocessing(preprocessing),
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=1.0,  # checked below, with a shorter message
  ) as batches:
    for batch in progress_bar(batches, len(batches), source.name):
      if batches.bad:
        path, reason = next(iter(batches.bad.items()))
        raise ValueError(f'{path}: {reason}')
      is_image = batch['mask'] > 0
      rows.append(np.asarray(features(batch['image']))[is_image])
      labels.append(batch['label'][is_image])
  return np.concatenate(rows), np.concatenate(labels)


def fewshot(
  features: Features,
  train: Source,
  test: Source,
  preprocessing: Preprocessing,
  *,
  shots: Sequence[int] = SHOTS,
  seeds: int = 3,
  batch_size: int = 32,
) -> dict[int, FewshotResult]:
  """Few-shot accuracy of frozen features.

  Args:
    features: the model, see `extract_features`.
    train: where support sets are drawn from.
    test: what accuracy is measured on; it has the same classes.
    preprocessing: of the model.
    shots: images per class to learn from; those beyond the smallest class are
      left out.
    seeds: number of support sets drawn for each.
    batch_size: images that go through the model together.

  Returns:
    {shots: result}.

  Raises:
    ValueError: the smallest class has fewer images than any of `shots`, or a
      source does not fit.
  """
  x, y = extract_features(features, train, preprocessing, batch_size=batch_size)
  test_x, test_y = extract_features(
    features, test, preprocessing, batch_size=batch_size
  )
  smallest = int(np.bincount(y, minlength=train.num_classes).min())
  results = {}
  for count in shots:
    if count > smallest:
      continue
    accuracies = []
    for seed in range(seeds):
      support = support_indices(y, train.num_classes, count, seed)
      scores = ridge_scores(x[support], y[support], test_x, train.num_classes)
      accuracies.append(float(np.mean(np.argmax(scores, axis=1) == test_y)))
    results[count] = FewshotResult(
      math.fsum(accuracies) / seeds, tuple(accuracies)
    )
  if not results:
    raise ValueError(
      f'the smallest class of {train.name} has {smallest} training images: '
      f'give fewer shots than {min(shots)}'
    )
  return results
