"""Probes of frozen features on all training images: k-NN and logistic.

`vit_jax.evaluation.fewshot` has the probe of a few images per class.
"""

from collections.abc import Sequence
import warnings

import numpy as np

TEMPERATURE = 0.07  # of the votes of neighbors (DINO, arXiv:2104.14294)
STRENGTHS = tuple(10.0**e for e in range(-4, 5))
_CHUNK = 1024  # test images whose similarities are held at a time


def knn_scores(
  features: np.ndarray,
  labels: np.ndarray,
  test_features: np.ndarray,
  num_classes: int,
  *,
  k: int = 20,
  temperature: float = TEMPERATURE,
) -> np.ndarray:
  """Votes of the k nearest training images, weighted by their similarity.

  The weight of a neighbor is exp(cosine similarity / temperature), as in the
  evaluation of DINO (arXiv:2104.14294, appendix F).

  Args:
    features: (N, D) of the training images.
    labels: (N,) int.
    test_features: (M, D).
    num_classes: C.
    k: number of neighbors; N if it is larger.
    temperature: of the weights.

  Returns:
    (M, C), float64; the largest score is the predicted class.
  """
  unit = lambda x: (
    x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  )
  train = unit(np.asarray(features, np.float64))
  test = unit(np.asarray(test_features, np.float64))
  labels, k = np.asarray(labels), min(k, len(train))
  scores = np.zeros((len(test), num_classes))
  for start in range(0, len(test), _CHUNK):
    similarity = test[start : start + _CHUNK] @ train.T
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
    rows = np.arange(len(near))[:, None] + start
    np.add.at(scores, (rows, labels[near]), weight)
  return scores


def logistic_scores(
  features: np.ndarray,
  labels: np.ndarray,
  test_features: np.ndarray,
  num_classes: int,
  *,
  strengths: Sequence[float] = STRENGTHS,
  holdout: float = 0.1,
  seed: int = 0,
) -> tuple[np.ndarray, float]:
  """Fits scikit-learn's logistic regression to standardized features.

  The inverse strength of the L2 penalty is the one with the best accuracy on a
  part of the training images that is held out; then all are fitted.

  Args:
    features: (N, D) of the training images.
    labels: (N,) int.
    test_features: (M, D).
    num_classes: C.
    strengths: values of scikit-learn's C to choose from.
    holdout: fraction of the training images for the choice.
    seed: of the part that is held out.

  Returns:
    Logarithms of probabilities (M, C), -inf for a class without training
    images, and the chosen strength.

  Raises:
    ValueError: the training images have one class only.
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import train_test_split
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  labels = np.asarray(labels)
  if len(np.unique(labels)) < 2:
    raise ValueError('a logistic probe needs training images of two classes')

  def fit(x, y, strength):
    model = make_pipeline(
      StandardScaler(), LogisticRegression(C=strength, max_iter=1000)
    )
    with warnings.catch_warnings():
      # The accuracy has settled long before the parameters have.
      warnings.simplefilter('ignore', ConvergenceWarning)
      return model.fit(x, y)

  best = strengths[0]
  if len(strengths) > 1:
    several = np.bincount(labels)[labels].min() > 1
    x, held_x, y, held_y = train_test_split(
      features,
      labels,
      test_size=max(holdout, num_classes / len(labels)),
      random_state=seed,
      stratify=labels if several else None,
    )
    best = max(strengths, key=lambda c: fit(x, y, c).score(held_x, held_y))
  model = fit(features, labels, best)
  scores = np.full((len(test_features), num_classes), -np.inf)
  with np.errstate(divide='ignore'):  # a probability of 0 is a score of -inf
    scores[:, model[-1].classes_] = model.predict_log_proba(test_features)
  return scores, best
