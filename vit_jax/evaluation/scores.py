"""Scores of classifications, computed on the host from arrays.

All functions take labels as class numbers (N,), or as an array (N, C) of
multi-hot or soft labels. An image without any label in such an array has no
weight, as in big_vision's evaluator.
"""

import dataclasses

import numpy as np

BINS = 15  # of confidence; the number that Guo et al. use (arXiv:1706.04599)


def weights(labels: np.ndarray) -> np.ndarray:
  """The weight of each image (N,): its largest label."""
  if labels.ndim == 1:
    return np.ones(len(labels))
  return labels.max(axis=1).astype(np.float64)


def label_values(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """The labels of some classes of each image.

  Args:
    labels: (N,) or (N, C).
    classes: (N, K) class numbers.

  Returns:
    (N, K): 1 where the class is the label, or the value in the array.
  """
  if labels.ndim == 1:
    return (classes == labels[:, None]).astype(np.float64)
  return np.take_along_axis(labels, classes, axis=1).astype(np.float64)


def top_k(labels: np.ndarray, best: np.ndarray, k: int) -> float:
  """The weighted share of images with a label among their k best classes.

  Args:
    labels: (N,) or (N, C).
    best: (N, K) class numbers, the best first; if k > K all K count.
    k: number of classes.
  """
  value = label_values(labels, best[:, :k]).max(axis=1)
  return _mean(value, weights(labels))


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
  if not weight.sum() > 0:
    raise ValueError('no image has a label')
  return float(np.sum(np.where(weight > 0, values, 0) * weight) / weight.sum())


def mean_loss(losses: np.ndarray, labels: np.ndarray) -> float:
  """The weighted mean of the losses (N,)."""
  return _mean(losses.astype(np.float64), weights(labels))


def per_class(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """How many images of each class there are, and are classified rightly.

  Args:
    labels: (N,), or (N, C), of which an image counts for each of its labels.
    predicted: (N,) the best class.
    num_classes: C.

  Returns:
    Two arrays (C,) of whole numbers: right images, and all images.
  """
  if labels.ndim == 1:
    right = labels == predicted
    count = lambda x: np.bincount(x, minlength=num_classes)
    return count(labels[right]), count(labels)
  is_label = labels > 0
  right = is_label & (predicted[:, None] == np.arange(num_classes))
  return right.sum(axis=0), is_label.sum(axis=0)


def confusion(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The entries of the confusion matrix that are not zero.

  Args:
    labels: (N,) class numbers.
    predicted: (N,) the best class.
    num_classes: C.

  Returns:
    Three arrays: label, predicted class and number of images, sorted by the
    first two. A matrix of 21,843 classes would take 4 GB.
  """
  pairs = labels.astype(np.int64) * num_classes + predicted
  pairs, count = np.unique(pairs, return_counts=True)
  return pairs // num_classes, pairs % num_classes, count


def confusion_matrix(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
  """`confusion` as an array (C, C), rows are labels."""
  matrix = np.zeros((num_classes, num_classes), np.int64)
  row, column, count = confusion(labels, predicted, num_classes)
  matrix[row, column] = count
  return matrix


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Confidence against accuracy (arXiv:1706.04599, section 2).

  Attributes:
    error: expected calibration error: the mean difference of the two, weighted
      by the number of images in a bin (equation 3).
    edges: (B + 1,) limits of the bins of confidence.
    confidence: (B,) mean confidence in each bin; NaN in an empty one.
    accuracy: (B,) share of right images in each bin; NaN in an empty one.
    count: (B,) number of images in each bin.
  """

  error: float
  edges: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  count: np.ndarray


def calibration(
  confidence: np.ndarray, right: np.ndarray, bins: int = BINS
) -> Calibration:
  """Compares the probability of the best class with how often it is right.

  Args:
    confidence: (N,) in [0, 1].
    right: (N,) whether the best class is right.
    bins: number of bins of equal width; a bin has its upper limit.
  """
  edges = np.linspace(0, 1, bins + 1)
  index = np.clip(np.searchsorted(edges, confidence, side='left') - 1, 0, None)
  sums = lambda x: np.bincount(index, x.astype(np.float64), minlength=bins)
  count = np.bincount(index, minlength=bins)
  with np.errstate(invalid='ignore'):
    mean_confidence, accuracy = sums(confidence) / count, sums(right) / count
  full = count > 0
  gap = np.abs(mean_confidence - accuracy)[full]
  error = float(np.sum(gap * count[full]) / count.sum()) if full.any() else 0.0
  return Calibration(error, edges, mean_confidence, accuracy, count)


def mean_average_precision(
  scores: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray]:
  """The mean over classes of the area under precision against recall.

  The area is a sum of steps, without interpolation, as scikit-learn's
  `average_precision_score` has it. Images with equal scores are one step.

  Args:
    scores: (N, C).
    labels: (N, C); values above 0 are labels.

  Returns:
    The mean over the classes that have an image, and the precision of each
    class (C,), NaN without images.
  """
  precisions = np.full(scores.shape[1], np.nan)
  for c in range(scores.shape[1]):
    positive = labels[:, c] > 0
    if positive.any():
      precisions[c] = _average_precision(scores[:, c], positive)
  if np.isnan(precisions).all():
    raise ValueError('no image has a label')
  return float(np.nanmean(precisions)), precisions


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
  order = np.argsort(-scores, kind='stable')
  last_of_ties = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
  found = np.cumsum(positive[order])[last_of_ties]
  precision = found / (last_of_ties + 1)
  return float(np.sum(np.diff(np.r_[0, found]) * precision) / found[-1])
