"""Few-shot linear probe of frozen features, with big_vision's protocol.

Features are the model's `pre_logits`. For each number of images per class and
each seed, a support set is drawn from the training images. Its features are
standardized, and a constant feature is added. A ridge regression to targets of
1 and -1 is solved in closed form; the largest output is the predicted class.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import loader
from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.sources.source import Source
from vit_jax.parallel.mesh import (
  batch_shards,
  batch_slice,
  put_batch,
  replicated,
)
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment
from vit_jax.training.progress import progress_bar

SHOTS = (1, 5, 10, 25)
BIAS = 100.0  # value of the constant feature, as in big_vision
L2 = 2.0**10  # weight of the penalty, as in big_vision
# From images (B, height, width, 3), pixels in [0, 255], to features (B, D).
Features = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FewshotResult:
  """Accuracy with one number of images per class.

  Attributes:
    mean: mean accuracy over the seeds.
    seeds: accuracy with the support set of each seed.
  """

  mean: float
  seeds: tuple[float, ...]


def support_indices(
  labels: np.ndarray, num_classes: int, shots: int, seed: int
) -> np.ndarray:
  """Draws a support set from the training examples, as big_vision does.

  Args:
    labels: (N,), labels of the training examples.
    num_classes: C.
    shots: number of examples of each class; a smaller class gives all it has.
    seed: seed of the draw.

  Returns:
    Indices into the training examples, sorted by class.
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
  l2: float = L2,
) -> np.ndarray:
  """Fits a ridge regression to a support set, and scores test features.

  Features are standardized with the mean and the standard deviation of the
  support set, and a constant feature is added. Targets are 1 for the class of
  an image and -1 for the other classes.

  Args:
    features: (N, D), features of the support set.
    labels: (N,) int, labels of the support set.
    test_features: (M, D).
    num_classes: C.
    l2: weight of the penalty, also for the weight of the constant feature.

  Returns:
    (M, C), float64; the largest score is the predicted class.
  """
  x = np.asarray(features, np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  with_bias = lambda a: np.concatenate(
    [(np.asarray(a, np.float64) - mean) / std, np.full((len(a), 1), BIAS)],
    axis=1,
  )
  x, test = with_bias(x), with_bias(test_features)
  y = 2.0 * np.eye(num_classes)[np.asarray(labels)] - 1.0
  # Both forms have the same solution. The one with the smaller matrix is
  # solved.
  if x.shape[0] < x.shape[1]:
    weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
  else:
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  return test @ weights


def probe_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
  """The protocol's: both sides to 8/7 of the size, then the center crop."""
  return dataclasses.replace(preprocessing, crop=7 / 8, crop_resize='squash')


def _check_labels(source: Source) -> None:
  """ValueError for a source with several labels for each image."""
  if source.multi_label:
    raise ValueError(
      f'{source.name} has several labels for each image, and a few-shot probe '
      'needs one: give a data set with one class for each image'
    )


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
    source: the images, with one label each.
    preprocessing: the model's own; `probe_preprocessing` changes its crop.
    batch_size: number of images in a batch.
    threads: number of threads that read and decode.

  Raises:
    ValueError: an image cannot be read, or the source has several labels for
      each image.
  """
  _check_labels(source)
  rows, labels = [], []
  with loader.eval_batches(
    source,
    probe_preprocessing(preprocessing),
    batch_size=batch_size,
    threads=threads,
    max_bad_fraction=1.0,  # the first unreadable image is reported below
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
    train: the images from which support sets are drawn.
    test: the images on which the accuracy is measured, of the same classes.
    preprocessing: the model's own, see `extract_features`.
    shots: numbers of images per class. Numbers above the size of the smallest
      class are left out.
    seeds: number of support sets for each number of shots.
    batch_size: number of images in a batch.

  Returns:
    {shots: result}.

  Raises:
    ValueError: all of `shots` are above the size of the smallest class, an
      image cannot be read, or a source has several labels for each image.
  """
  x, y = extract_features(features, train, preprocessing, batch_size=batch_size)
  test_x, test_y = extract_features(
    features, test, preprocessing, batch_size=batch_size
  )
  return probe_features(
    (x, y), (test_x, test_y), train.num_classes, shots=shots, seeds=seeds
  )


def probe_features(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  num_classes: int,
  *,
  shots: Sequence[int] = SHOTS,
  seeds: int = 3,
  l2: float = L2,
) -> dict[int, FewshotResult]:
  """`fewshot` of features (N, D) and labels (N,) that are known already.

  Args:
    train, test: features and labels.
    num_classes: C.
    shots, seeds: as for `fewshot`.
    l2: as for `ridge_scores`.

  Returns:
    {shots: result}.

  Raises:
    ValueError: all of `shots` are above the size of the smallest class.
  """
  (x, y), (test_x, test_y) = train, test
  smallest = int(np.bincount(y, minlength=num_classes).min())
  results = {}
  for count in shots:
    if count > smallest:
      continue
    accuracies = []
    for seed in range(seeds):
      support = support_indices(y, num_classes, count, seed)
      scores = ridge_scores(x[support], y[support], test_x, num_classes, l2=l2)
      accuracies.append(float(np.mean(np.argmax(scores, axis=1) == test_y)))
    results[count] = FewshotResult(
      math.fsum(accuracies) / seeds, tuple(accuracies)
    )
  if not results:
    raise ValueError(
      f'the smallest class has {smallest} training images: '
      f'give fewer shots than {min(shots)}'
    )
  return results


class FewshotProbe:
  """Few-shot accuracy of a model while it is trained.

  All devices share the batches, and the features of all images are gathered in
  every process.

  Args:
    model: Linen module.
    mesh: the devices.
    train, test: as for `fewshot`.
    preprocessing: the model's own, see `extract_features`.
    shots: numbers of images per class.
    seeds: number of support sets for each number of shots.
    batch_size: number of images in a global batch.
    decoding: how images are decoded.
    threads: number of threads that read and decode, in each process.

  Raises:
    ValueError: a source has several labels for each image.
  """

  def __init__(
    self,
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    train: Source,
    test: Source,
    *,
    preprocessing: Preprocessing,
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
    batch_size: int = 32,
    decoding: Decoding = DEFAULT_DECODING,
    threads: int = 4,
  ):
    for source in (train, test):
      _check_labels(source)
    self._mesh, self._sources = mesh, (train, test)
    self._shots, self._seeds = tuple(shots), seeds
    shards = batch_shards(mesh)
    index, count = batch_slice(mesh)
    self._loading = {
      'batch_size': max(1, batch_size // shards) * shards,
      'decoding': decoding,
      'threads': threads,
      'process_index': index,
      'process_count': count,
      'max_bad_fraction': 1.0,  # unreadable images are left out
    }
    self._preprocessing = probe_preprocessing(preprocessing)
    dtype = jnp.dtype(getattr(model, 'dtype', jnp.float32))

    def step(variables, batch):
      images = augment.normalize(batch['image'], preprocessing.normalize, dtype)
      result: Any = model.apply(variables, images, train=False)
      features = result[1]['pre_logits'].astype(jnp.float32)
      return features, batch['label'], batch['mask']

    self._step = jax.jit(step, out_shardings=replicated(mesh))

  def __call__(self, variables: Any) -> dict[str, float]:
    """The accuracies of variables, {'5_shot': mean over the seeds, ...}.

    Raises:
      ValueError: all numbers of shots are above the size of the smallest class.
    """
    train, test = (
      self._features(variables, source) for source in self._sources
    )
    results = probe_features(
      train,
      test,
      self._sources[0].num_classes,
      shots=self._shots,
      seeds=self._seeds,
    )
    return {f'{shots}_shot': result.mean for shots, result in results.items()}

  def _features(
    self, variables: Any, source: Source
  ) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (N,) of a source."""
    rows, labels = [], []
    with loader.eval_batches(
      source, self._preprocessing, **self._loading
    ) as batches:
      for batch in progress_bar(batches, len(batches), source.name):
        batch = {key: batch[key] for key in ('image', 'label', 'mask')}
        features, label, mask = jax.device_get(
          self._step(variables, put_batch(batch, self._mesh))
        )
        rows.append(features[mask > 0])
        labels.append(label[mask > 0])
    return np.concatenate(rows), np.concatenate(labels)
