"""Scores against scikit-learn, plain loops and values known in closed form."""

import numpy as np
import pytest
from sklearn import metrics

from vit_jax.evaluation import scores

RNG = np.random.default_rng(0)
N, C = 200, 7
LABELS = RNG.integers(0, C, N)
SCORES = np.round(RNG.random((N, C)), 2)  # with ties
BEST = np.argsort(-SCORES, axis=1, kind='stable')
MULTI = (RNG.random((N, C)) < 0.2).astype(np.float32)


def test_confusion_matrix_is_that_of_scikit_learn():
  expected = metrics.confusion_matrix(LABELS, BEST[:, 0], labels=range(C))
  np.testing.assert_array_equal(
    scores.confusion_matrix(LABELS, BEST[:, 0], C), expected
  )
  right, total = scores.per_class(LABELS, BEST[:, 0], C)
  np.testing.assert_array_equal(right, np.diag(expected))
  np.testing.assert_array_equal(total, expected.sum(axis=1))


@pytest.mark.parametrize('k', [1, 3, 5])
def test_top_k_is_that_of_scikit_learn(k):
  distinct = SCORES + 1e-4 * np.arange(C, 0, -1)  # scikit-learn breaks ties so
  expected = metrics.top_k_accuracy_score(LABELS, distinct, k=k)
  assert scores.top_k(LABELS, BEST, k) == pytest.approx(expected)


def test_several_labels_count_as_one_and_none_as_nothing():
  labels = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
  best = np.array([[1, 0, 2], [0, 2, 1], [0, 1, 2]])
  assert scores.top_k(labels, best, 1) == 0.5
  assert scores.top_k(labels, best, 2) == 1.0
  assert scores.mean_loss(np.array([1.0, 2.0, np.nan]), labels) == 1.5
  with pytest.raises(ValueError, match='no image has a label'):
    scores.top_k(labels[2:], best[2:], 1)


def test_mean_average_precision_is_that_of_scikit_learn():
  mean, each = scores.mean_average_precision(SCORES, MULTI)
  expected = metrics.average_precision_score(MULTI, SCORES, average=None)
  np.testing.assert_allclose(each, expected, rtol=1e-12)
  assert mean == pytest.approx(np.mean(expected))
  without = MULTI.copy()
  without[:, 2] = 0
  mean, each = scores.mean_average_precision(SCORES, without)
  assert np.isnan(each[2])
  assert mean == pytest.approx(np.mean(np.delete(expected, 2)))


def test_calibration_of_known_confidence():
  """Always 0.8 sure and right in 60 of 100 cases: the error is 0.2."""
  result = scores.calibration(np.full(100, 0.8), np.arange(100) < 60)
  assert result.error == pytest.approx(0.2)
  assert result.count.sum() == result.count.max() == 100
  perfect = np.repeat([0.25, 0.75], 4)
  right = np.array([1, 0, 0, 0, 1, 1, 1, 0])
  assert scores.calibration(perfect, right).error == pytest.approx(0)


def test_limits_of_bins_belong_to_the_bin_below():
  """(0, 1/15], (1/15, 2/15], ...; 0 is in the first."""
  result = scores.calibration(
    np.array([0.0, 0.2, 0.2000001, 1.0]), np.ones(4), bins=5
  )
  np.testing.assert_array_equal(result.count, [2, 1, 0, 0, 1])
