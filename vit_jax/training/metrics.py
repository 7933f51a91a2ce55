"""Classification metrics as dicts of sums, so that they can be merged exactly.

`batch_metrics` runs inside jit on one batch; `merge` adds the sums of batches,
processes or data sets in any order; `summarize` divides at the end. A float32
sum of ones is exact up to 2^24, far above any batch; `merge` adds in float64.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Whether one of the k best classes is a label: bool (B,).

  Args:
    logits: (B, C); of equal logits the lower class comes first.
    labels: (B,) int classes, or (B, C) one-hot, multi-hot or soft. Of the
      latter, the classes with the largest value are the labels, if that value
      is above 0. For multi-hot labels, k = 1 gives precision@1.
    k: number of classes; more than C count as C.
  """
  # Counts the classes ranked before the best label. `lax.top_k` would gather
  # the logits of all devices.
  if labels.ndim == 1:
    best = labels[:, None]
    has_label = True
  else:
    largest = jnp.max(labels, axis=-1, keepdims=True)
    is_label = (labels == largest) & (labels > 0)
    best = jnp.argmax(
      jnp.where(is_label, logits, -jnp.inf), axis=-1, keepdims=True
    )
    has_label = jnp.take_along_axis(is_label, best, axis=-1)[:, 0]
  score = jnp.take_along_axis(logits, best, axis=-1)
  classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  # A comparison with NaN is False, so a class whose logit is NaN is ranked
  # before the label, and the prediction counts as wrong.
  behind = (logits < score) | ((logits == score) & (classes >= best))
  rank = jnp.sum(~behind, axis=-1)
  return (rank < min(k, logits.shape[-1])) & has_label


def top_k_label(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """The largest label value among the k best classes, float32 (B,).

  For classes and multi-hot labels it is 1 where one of the k best classes is
  a label, else 0.

  Args:
    logits: (B, C); of equal logits the lower class comes first.
    labels: (B,) int classes, or (B, C) multi-hot or soft labels.
    k: number of classes; more than C count as C.
  """
  if labels.ndim == 1:
    return top_k_correct(logits, labels, k).astype(jnp.float32)
  # Takes one best class after the other. `lax.top_k` would gather the logits of
  # all devices.
  classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  value = jnp.zeros(logits.shape[:1], jnp.float32)
  for _ in range(min(k, logits.shape[-1])):
    is_best = classes == jnp.argmax(logits, axis=-1, keepdims=True)
    label = jnp.sum(jnp.where(is_best, labels, 0), axis=-1)
    is_nan = jnp.any(is_best & jnp.isnan(logits), axis=-1)
    value = jnp.maximum(value, jnp.where(is_nan, 0, label))
    logits = jnp.where(is_best, -jnp.inf, logits)
  return value


def batch_metrics(
  logits: jax.Array,
  labels: jax.Array,
  losses: jax.Array | None = None,
  mask: jax.Array | None = None,
  topk: Sequence[int] = (1, 5),
) -> dict[str, jax.Array]:
  """Sums over one batch, as big_vision's classification evaluator has them.

  The weight of an example is its largest label. An image without any label, in
  a multi-label set, therefore has no weight, neither in the accuracy nor in the
  loss; one with a smoothed label has a weight a little below 1.

  Args:
    logits: (B, C).
    labels: see `top_k_label`.
    losses: (B,) per-example losses.
    mask: (B,), 1 for real examples, 0 for padding.
    topk: the numbers of best classes that are counted.

  Returns:
    Float32 scalars: 'images', the number of real examples; 'examples', the sum
    of their weights; and the weighted sums 'topK' for each K and, with
    `losses`, 'loss'.
  """
  if mask is None:
    mask = jnp.ones(logits.shape[:1], bool)
  mask = mask.astype(bool)
  weight = 1 if labels.ndim == 1 else jnp.max(labels, axis=-1)
  # `where` instead of a multiplication, because a masked value may be NaN.
  total = lambda x: jnp.sum(jnp.where(mask, x, 0), dtype=jnp.float32)
  counted = lambda x: total(jnp.where(weight == 0, 0, x * weight))
  sums = {
    'images': total(1),
    'examples': counted(1),
    **{f'top{k}': counted(top_k_label(logits, labels, k)) for k in topk},
  }
  if losses is not None:
    sums['loss'] = counted(losses)
  return sums


def merge(*sums: dict) -> dict:
  """Adds dicts of sums with the same keys, on the host, in float64.

  Raises:
    ValueError: the keys differ.
  """
  for other in sums[1:]:
    if other.keys() != sums[0].keys():
      raise ValueError(
        f'metrics with different keys: {sorted(sums[0])} and {sorted(other)}'
      )
  return {k: sum(np.float64(s[k]) for s in sums) for k in sums[0]}


def summarize(sums: dict) -> dict:
  """Divides sums by the weight of the examples.

  Returns:
    The means by name, and 'examples', the sum of the weights, rounded.

  Raises:
    ValueError: no example has a weight.
  """
  weight = float(sums['examples'])
  if not weight > 0:
    raise ValueError(
      'no example was counted: the evaluation set is empty, wholly masked or '
      'without labels'
    )
  means = {
    k: float(v) / weight
    for k, v in sums.items()
    if k not in ('examples', 'images')
  }
  return dict(means, examples=round(weight))
