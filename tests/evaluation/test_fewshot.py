"""The closed form of the few-shot probe."""

import numpy as np
import pytest

from vit_jax.evaluation.fewshot import ridge_scores, support_indices


@pytest.mark.parametrize('examples, width', [(12, 5), (6, 20)])
def test_ridge_scores_minimises_its_objective(examples, width):
  """Equals gradient-free minimisation of |XW - Y|^2 + l2 |W|^2 (lstsq)."""
  rng = np.random.default_rng(0)
  x, test = (
    rng.standard_normal((examples, width)),
    rng.standard_normal((50, width)),
  )
  y = np.arange(examples) % 3
  for l2 in (2.0**10, 0.1):
    found = np.argmax(ridge_scores(x, y, test, 3, l2=l2), axis=1)
    mean, std = x.mean(0), x.std(0) + 1e-5
    white = np.concatenate([(x - mean) / std, np.full((examples, 1), 100)], 1)
    stacked = np.concatenate([white, l2**0.5 * np.eye(width + 1)])
    targets = np.concatenate([2 * np.eye(3)[y] - 1, np.zeros((width + 1, 3))])
    weights, *_ = np.linalg.lstsq(stacked, targets, rcond=None)
    scores = (
      np.concatenate([(test - mean) / std, np.full((50, 1), 100)], 1) @ weights
    )
    np.testing.assert_array_equal(found, scores.argmax(1))


def test_separable_classes_are_learned():
  rng = np.random.default_rng(1)
  centres = 5 * rng.standard_normal((4, 8))
  y = np.arange(40) % 4
  x = centres[y] + 0.1 * rng.standard_normal((40, 8))
  np.testing.assert_array_equal(np.argmax(ridge_scores(x, y, x, 4), axis=1), y)


def test_support_sets():
  labels = np.array([0, 1, 0, 1, 1, 0, 2])
  chosen = support_indices(labels, 3, 2, seed=1)
  assert labels[chosen].tolist() == [0, 0, 1, 1, 2]  # a small class as a whole
  np.testing.assert_array_equal(chosen, support_indices(labels, 3, 2, seed=1))
