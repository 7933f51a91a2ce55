"""Few-shot linear probe: how good are frozen features? (big_vision's protocol)

Features are `pre_logits`. For each number of shots a class and each seed, the
support set is whitened, gets a constant feature, and a ridge regression on +-1
targets is solved in closed form; accuracy on the test images by argmax.
"""

import math
from typing import Any

import jax
import numpy as np

from vit_jax.data.decode import BadImage, decode
from vit_jax.data.sources.opening import directory_source, open_source
from vit_jax.data.sources.source import Source
from vit_jax.data.transforms import eval_image
from vit_jax.inference.classifier import Classifier, load_classifier
from vit_jax.preprocessing import Preprocessing
from vit_jax.training.progress import progress_bar

SHOTS = (1, 5, 10, 25)
BIAS = 100.0  # the constant feature


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
  features, labels, test_features, num_classes: int, *, l2: float = 2.0**10
) -> np.ndarray:
  """Scores that a ridge regression gives to test features.

  Features are divided by the standard deviation of the support set, around its
  mean, and get a constant one; targets are 1 for the class and -1 for others.

  Args:
    features, labels: support set, (N, D) and (N,).
    test_features: (M, D).
    num_classes: C.
    l2: weight of the penalty, of the constant feature's weight too.

  Returns:
    (M, C), float64; the largest is the predicted class.
  """
  x = np.asarray(features, np.float64)
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  augmented = lambda a: np.concatenate(
    [(np.asarray(a, np.float64) - mean) / std, np.full((len(a), 1), BIAS)],
    axis=1,
  )
  x, test = augmented(x), augmented(test_features)
  y = 2.0 * np.eye(num_classes)[np.asarray(labels)] - 1.0
  if x.shape[0] < x.shape[1]:  # the smaller of the two equal systems
    weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
  else:
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  return test @ weights


def extract_features(
  classifier: Classifier, source: Source, *, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
  """`pre_logits` (N, D) and labels (N,) of a source.

  Images are squashed to 8/7 of the image size, and the centre is taken.
  Raises ValueError, naming it, for an image that cannot be read.
  """
  size = classifier.image_size
  preprocessing = Preprocessing(
    size, 7 / 8, crop_resize='squash', interpolation=classifier.interpolation
  )
  step = jax.jit(lambda v, x: classifier.forward(v, x)[1]['pre_logits'])
  features, labels = [], []
  starts = range(0, len(source), batch_size)
  for start in progress_bar(starts, len(starts), source.name):
    batch = np.zeros((batch_size, *size, 3), np.uint8)
    stop = min(start + batch_size, len(source))
    for row, i in enumerate(range(start, stop)):
      example = source[i]
      try:
        batch[row] = eval_image(decode(example['image']), preprocessing)
      except BadImage as e:
        raise ValueError(f'{source.describe(i)}: {e}') from e
      labels.append(example['label'])
    features.append(
      np.asarray(step(classifier.on_device, batch))[: stop - start]
    )
  return np.concatenate(features), np.asarray(labels)


def fewshot(
  weights,
  data: str,
  *,
  shots=SHOTS,
  seeds: int = 3,
  holdout: float = 0.5,
  batch_size: int = 32,
  **options,
) -> dict[int, Any]:
  """Few-shot accuracy of frozen features on a folder of images.

  Args:
    weights, **options: see `predict.load_classifier`.
    data: image folder or packed data set, with a test part or held out.
    shots: images per class to learn from; those beyond the smallest class are
      left out.
    seeds: support sets drawn for each.
    holdout: fraction of a flat folder that is the test part.
    batch_size: images that go through the model together.

  Returns:
    {shots: {'mean': accuracy, 'seeds': [accuracies]}}.

  Raises:
    ValueError: no number of shots is possible.
  """
  classifier = load_classifier(weights, **options)
  kind = directory_source(data)
  train, test = (
    open_source(kind, split=split, data_dir=data, holdout=holdout)
    for split in ('train', 'test')
  )
  if train.multi_label:
    raise ValueError(
      f'{data} has several labels for an image: the few-shot probe is for data '
      'with one class each'
    )
  x, y = extract_features(classifier, train, batch_size=batch_size)
  test_x, test_y = extract_features(classifier, test, batch_size=batch_size)
  smallest = int(np.bincount(y, minlength=train.num_classes).min())
  results = {}
  for n in shots:
    if n > smallest:
      continue
    accuracies = []
    for seed in range(seeds):
      support = support_indices(y, train.num_classes, n, seed)
      scores = ridge_scores(x[support], y[support], test_x, train.num_classes)
      accuracies.append(float(np.mean(np.argmax(scores, axis=1) == test_y)))
    results[n] = {'mean': math.fsum(accuracies) / seeds, 'seeds': accuracies}
  if not results:
    raise ValueError(
      f'the smallest class of {data} has {smallest} training '
      f'images: give fewer shots than {min(shots)}'
    )
  return results
