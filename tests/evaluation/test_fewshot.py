"""The closed form of the few-shot probe."""

import numpy as np
import pytest

from vit_jax.evaluation.fewshot import ridge_probe


@pytest.mark.parametrize('examples, width', [(12, 5), (6, 20)])
def test_ridge_probe_minimises_its_objective(examples, width):
  """Equals gradient-free minimisation of |XW - Y|^2 + l2 |W|^2 (lstsq)."""
  rng = np.random.default_rng(0)
  x, test = (
    rng.standard_normal((examples, width)),
    rng.standard_normal((50, width)),
  )
  y = np.arange(examples) % 3
  for l2 in (2.0**10, 0.1):
    found = ridge_probe(x, y, test, 3, l2=l2)
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
  np.testing.assert_array_equal(ridge_probe(x, y, x, 4), y)
