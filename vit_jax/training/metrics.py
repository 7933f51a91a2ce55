"""Classification metrics as plain dicts of sums, exact under masks and merges.

`batch_metrics` runs inside jit on one batch; `merge` adds the sums of batches,
processes or data sets in any order; `summarize` divides at the end. A float32
sum of ones is exact up to 2^24, far above any batch; `merge` adds in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np


def top_k_correct(logits, labels, k: int):
  """Whether one of the k best classes is a label: bool (B,).

  Args:
    logits: (B, C); of equal logits the lower class comes first.
    labels: (B,) int classes, or (B, C) one-hot, multi-hot or soft, where the
      classes with the largest value count, if it is above 0. So multi-label
      targets give precision@1 at k = 1.
    k: at most C is used.
  """
  # By counting the classes that come before the best label: lax.top_k would
  # gather the logits of all devices.
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
  # Written so that NaN, which compares as False, comes before everything.
  behind = (logits < score) | ((logits == score) & (classes >= best))
  rank = jnp.sum(~behind, axis=-1)
  return (rank < min(k, logits.shape[-1])) & has_label


def batch_metrics(logits, labels, losses=None, mask=None):
  """Sums over one batch.

  Args:
    logits: (B, C).
    labels: see `top_k_correct`.
    losses: (B,) per-example losses.
    mask: (B,), 1 for real examples, 0 for padding, whose values never count.

  Returns:
    dict of float32 scalars: 'examples', 'top1', 'top5' and, with losses,
    'loss'.
  """
  if mask is None:
    mask = jnp.ones(logits.shape[:1], bool)
  mask = mask.astype(bool)
  total = lambda x: jnp.sum(jnp.where(mask, x, 0), dtype=jnp.float32)
  sums = {
    'examples': total(1),
    'top1': total(top_k_correct(logits, labels, 1)),
    'top5': total(top_k_correct(logits, labels, 5)),
  }
  if losses is not None:
    sums['loss'] = total(losses)
  return sums


def merge(*sums: dict) -> dict:
  """Adds dicts of sums of the same keys, on the host, in float64."""
  for other in sums[1:]:
    if other.keys() != sums[0].keys():
      raise ValueError(
        f'metrics with different keys: {sorted(sums[0])} and {sorted(other)}'
      )
  return {k: sum(np.float64(s[k]) for s in sums) for k in sums[0]}


def summarize(sums: dict) -> dict:
  """Means per example, as Python numbers; 'examples' stays a count."""
  examples = round(float(sums['examples']))
  if not examples:
    raise ValueError(
      'no example was counted: the evaluation set is empty or wholly masked'
    )
  means = {k: float(v) / examples for k, v in sums.items() if k != 'examples'}
  return dict(means, examples=examples)
