"""k-NN and logistic probes against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from vit_jax.evaluation.fewshot import BIAS, ridge_scores
from vit_jax.evaluation.probes import knn_scores, logistic_scores

RNG = np.random.default_rng(0)
CENTERS = RNG.standard_normal((4, 6))
LABELS = np.arange(80) % 4
TRAIN = CENTERS[LABELS] + RNG.standard_normal((80, 6))
TEST = CENTERS[np.arange(50) % 4] + RNG.standard_normal((50, 6))


@pytest.mark.parametrize('k', [1, 5, 100])
def test_knn_is_that_of_scikit_learn(k):
  model = KNeighborsClassifier(
    min(k, 80), metric='cosine', weights=lambda d: np.exp((1 - d) / 0.07)
  ).fit(TRAIN, LABELS)
  scores = knn_scores(TRAIN, LABELS, TEST, 4, k=k)
  np.testing.assert_allclose(
    scores / scores.sum(axis=1, keepdims=True),
    model.predict_proba(TEST),
    atol=1e-9,
  )


def test_logistic_probe_is_that_of_scikit_learn():
  scores, strength = logistic_scores(TRAIN, LABELS, TEST, 5, strengths=[0.5])
  mean, std = TRAIN.mean(0), TRAIN.std(0)
  model = LogisticRegression(C=0.5).fit((TRAIN - mean) / std, LABELS)
  assert strength == 0.5
  np.testing.assert_allclose(
    scores[:, :4], model.predict_log_proba((TEST - mean) / std), atol=1e-3
  )
  assert np.isneginf(scores[:, 4]).all()  # a class without training images


def test_the_strength_is_chosen_on_held_out_images():
  """Labels that are noise ask for the strongest penalty, others do not."""
  noise = RNG.standard_normal((80, 60))
  _, strength = logistic_scores(
    np.c_[10 * np.eye(4)[LABELS], noise], LABELS, np.zeros((1, 64)), 4
  )
  assert strength > 1e-4
  with pytest.raises(ValueError, match='two classes'):
    logistic_scores(TRAIN, np.zeros(80, int), TEST, 4)


@pytest.mark.parametrize('count', [80, 5])
@pytest.mark.parametrize('l2', [2.0**10, 0.5])
def test_ridge_is_that_of_scikit_learn(count, l2):
  """The closed form of the few-shot probe, on the same features.

  80 images are more than the 7 features, 5 are fewer.
  """
  x, y = TRAIN[:count], LABELS[:count]
  mean, std = x.mean(0), x.std(0) + 1e-5
  with_bias = lambda x: np.c_[(x - mean) / std, np.full(len(x), BIAS)]
  model = Ridge(l2, fit_intercept=False)
  model.fit(with_bias(x), 2.0 * np.eye(4)[y] - 1)
  np.testing.assert_allclose(
    ridge_scores(x, y, TEST, 4, l2=l2),
    model.predict(with_bias(TEST)),
    atol=1e-5,
  )
