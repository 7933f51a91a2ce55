"""Metrics against counting by hand."""

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.training import metrics


def batch(seed, size=12, classes=9):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(size, classes)).astype(np.float32),
    rng.integers(0, classes, size),
    rng.normal(size=size).astype(np.float32) ** 2,
  )


@given(st.integers(0, 10**6), st.integers(0, 12))
@settings(max_examples=20, deadline=None)
def test_equals_counting(seed, real):
  logits, labels, losses = batch(seed)
  mask = np.arange(12) < real
  losses[~mask] = np.nan
  sums = jax.jit(metrics.batch_metrics)(logits, labels, losses, mask)
  order = np.argsort(-logits, axis=1)
  assert sums['examples'] == real
  for key, k in (('top1', 1), ('top5', 5)):
    assert sums[key] == sum(labels[i] in order[i, :k] for i in range(real))
  np.testing.assert_allclose(sums['loss'], losses[:real].sum(), rtol=1e-5)


def test_one_hot_and_int_labels_agree():
  logits, labels, losses = batch(0)
  chex.assert_trees_all_close(
    metrics.batch_metrics(logits, jax.nn.one_hot(labels, 9), losses),
    metrics.batch_metrics(logits, labels, losses),
    rtol=1e-6,
  )


def test_examples_count_as_much_as_their_largest_label():
  """big_vision's rule: smoothed labels count a little less than 1."""
  logits, labels, losses = batch(0)
  hard = metrics.batch_metrics(logits, labels, losses)
  on, off = 0.9, 0.05
  smoothed = jnp.where(jax.nn.one_hot(labels, 9) > 0, on, off)
  soft = metrics.batch_metrics(logits, smoothed, losses)
  assert soft['images'] == 12
  np.testing.assert_allclose(soft['examples'], 12 * on, rtol=1e-6)
  np.testing.assert_allclose(soft['loss'], on * hard['loss'], rtol=1e-6)
  for key in ('top1', 'top5'):  # a wrong class adds its smoothed label
    hits = float(hard[key])
    np.testing.assert_allclose(
      soft[key], on * (hits * on + (12 - hits) * off), rtol=1e-6
    )


def test_multi_label_is_precision_at_one():
  logits = jnp.array([[3.0, 2, 1], [1, 3, 2], [0, 0, 9]])
  labels = jnp.array([[1.0, 1, 0], [1, 0, 1], [0, 0, 0]])
  losses = jnp.array([1.0, 2.0, jnp.nan])
  sums = metrics.batch_metrics(logits, labels, losses)
  # A right image, a wrong one, and one without labels, which does not count.
  assert sums['top1'] == 1 and sums['top5'] == 2
  assert sums['images'] == 3 and sums['examples'] == 2 and sums['loss'] == 3


def test_nan_logits_are_wrong():
  logits = jnp.full((2, 9), jnp.nan)
  for labels in (jnp.array([0, 5]), jnp.ones((2, 9))):
    sums = metrics.batch_metrics(logits, labels)
    assert sums['top1'] == 0 and sums['examples'] == 2


def test_equal_logits_choose_the_lower_class():
  logits = jnp.zeros((2, 9))
  sums = metrics.batch_metrics(logits, jnp.array([0, 5]))
  assert sums['top1'] == 1 and sums['top5'] == 1


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None)
def test_merged_batches_equal_the_whole_set(sizes):
  batches = [batch(i) for i in range(len(sizes))]
  masks = [np.arange(12) < n for n in sizes]
  merged = metrics.merge(
    *(metrics.batch_metrics(*p, m) for p, m in zip(batches, masks))
  )
  whole = metrics.batch_metrics(
    *(np.concatenate(x) for x in zip(*batches)), np.concatenate(masks)
  )
  for key in ('examples', 'top1', 'top5'):
    assert merged[key] == whole[key]
  np.testing.assert_allclose(merged['loss'], whole['loss'], rtol=1e-5)


def test_merge_stays_exact_beyond_float32():
  one = {'examples': jnp.float32(2**24)}
  assert metrics.merge(one, {'examples': 1.0})['examples'] == 2**24 + 1


def test_summarize():
  sums = {'examples': 8.0, 'top1': 6.0, 'top5': 8.0, 'loss': 4.0}
  assert metrics.summarize(sums) == {
    'top1': 0.75,
    'top5': 1.0,
    'loss': 0.5,
    'examples': 8,
  }
  with pytest.raises(ValueError, match='empty'):
    metrics.summarize({'examples': 0.0})
  with pytest.raises(ValueError, match='different keys'):
    metrics.merge(sums, {'examples': 1.0})
