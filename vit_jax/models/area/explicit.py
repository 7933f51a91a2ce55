"""Area attention with a probability for each area (arXiv:1810.10126).

`explicit` builds the key and the value of each area, as the paper defines
them, and serves every mode. `factored` serves mean keys with sum or mean values
and builds no keys and values of areas: an area's logit is the mean of the
ordinary logits over its items, and an item's value is weighted with the
probabilities of the areas that contain it.

B batch, T queries, S memory items, A areas, H heads, K and V head widths.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.models.area.areas import Areas
from vit_jax.models.softmax import softmax

KEY_MODES = (
  'mean',
  'max',
  'sample',
  'concat',
  'max_concat',
  'sum',
  'sample_concat',
  'sample_sum',
)
LEARNED_KEY_MODES = KEY_MODES[3:]  # the modes that have parameters
VALUE_MODES = ('sum', 'mean', 'max')

Dropout = Callable[[jax.Array], jax.Array]


def mean(items: Sequence[jax.Array]) -> jax.Array:
  """The element-wise mean of arrays of one shape."""
  return sum(items[1:], items[0]) / len(items)


def _std(items: Sequence[jax.Array]) -> jax.Array:
  center = mean(items)
  return jnp.sqrt(mean([(x - center) ** 2 for x in items]) + 1e-6)


STATISTICS: dict[str, Callable[[Sequence[jax.Array]], jax.Array]] = {
  'sum': lambda items: sum(items[1:], items[0]),
  'mean': mean,
  'std': _std,  # sqrt(variance + 1e-6)
  'max': lambda items: functools.reduce(jnp.maximum, items),
}


def area_statistic(
  x: jax.Array, areas: Areas, name: str, axis: int = 1
) -> jax.Array:
  """A statistic of each area's items, element-wise, in float32.

  Args:
    x: any array; `axis` has S entries.
    areas: the areas of the S items.
    name: a key of STATISTICS.
    axis: the axis of the items.

  Returns:
    x with A entries in `axis`, float32.
  """
  return areas.reduce(x.astype(jnp.float32), STATISTICS[name], axis)


def area_keys(
  k: jax.Array,
  areas: Areas,
  mode: str = 'mean',
  params: Mapping[str, Any] | None = None,
  noise: jax.Array | None = None,
) -> jax.Array:
  """Keys of the areas (arXiv:1810.10126, eq. 3 and section 3.2).

  'mean' and 'max' reduce the keys of the items. The 'sample' modes add Gaussian
  noise with the standard deviation of the items to the mean. The learned modes
  give a two-layer MLP features of the area: the mean, maximum or sample of the
  items, their standard deviation, and an embedding of the area's height and
  width, concatenated or added.

  Args:
    k: (B, S, H, K) keys of the items.
    areas: the areas of the S items.
    mode: one of KEY_MODES.
    params: parameters of the learned modes, which all heads share:
      height_embedding (max height, K/2), width_embedding (max width, K/2), and
      the kernel and bias of Dense_0 and of Dense_1, whose output has width K.
    noise: PRNG key of the sampled modes; None uses the mean.

  Returns:
    (B, A, H, K) in the dtype of `k`.
  """
  dtype, statistic = k.dtype, functools.partial(area_statistic, k, areas)
  x = statistic('max' if mode in ('max', 'max_concat') else 'mean')
  if mode.startswith('sample') and noise is not None:
    x += statistic('std') * jax.random.normal(noise, x.shape)
  if mode not in LEARNED_KEY_MODES or params is None:
    return x.astype(dtype)
  size = jnp.concatenate(
    [
      params['height_embedding'][areas.heights - 1],
      params['width_embedding'][areas.widths - 1],
    ],
    -1,
  )
  size = jnp.broadcast_to(size[None, :, None], x.shape)
  if mode == 'concat':
    x = jnp.concatenate([x, statistic('std'), size], -1)
  elif mode in ('max_concat', 'sample_concat'):
    x = jnp.concatenate([x, size], -1)
  elif mode == 'sum':
    x = x + statistic('std') + size
  else:  # sample_sum
    x = x + size
  x = jax.nn.relu(_dense(x.astype(dtype), params['Dense_0']))
  return _dense(x, params['Dense_1'])


def _dense(x: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
  bias = params['bias'].astype(x.dtype)
  y = x @ params['kernel'].astype(x.dtype)
  return y + jnp.broadcast_to(bias, (*x.shape[:-1], *bias.shape))


def item_logits(q: jax.Array, k: jax.Array) -> jax.Array:
  """The logits of ordinary attention.

  Args:
    q: queries (B, T, H, K).
    k: keys of the items (B, S, H, K).

  Returns:
    float32 (B, H, T, S): q.k / sqrt(K).
  """
  return jnp.einsum(
    'bthk,bshk->bhts',
    q * (q.shape[-1] ** -0.5),
    k,
    preferred_element_type=jnp.float32,
  )


def _probabilities(
  logits: jax.Array, areas: Areas, mask: jax.Array | None, top_k: int
) -> jax.Array:
  """Softmax over the areas (..., A).

  Areas with a masked item, and with `top_k` all but the k most probable areas,
  have probability zero.
  """
  if mask is not None:
    mask = areas.reduce(
      mask, lambda items: functools.reduce(jnp.logical_and, items)
    )
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  probs = softmax(logits)
  if top_k:
    top, _ = jax.lax.top_k(
      jax.lax.stop_gradient(probs), min(top_k, probs.shape[-1])
    )
    # Areas that are as probable as the k-th are all kept, so the result does
    # not depend on the order of equal areas.
    probs = jnp.where(probs >= top[..., -1:], probs, 0.0)
    probs /= probs.sum(-1, keepdims=True)
  return probs


def area_probabilities(q: jax.Array, k: jax.Array, areas: Areas) -> jax.Array:
  """The probability of each area, for mean keys.

  Args:
    q: queries (B, T, H, K).
    k: keys of the items (B, S, H, K).
    areas: the areas of the S items.

  Returns:
    float32 (B, H, T, A).
  """
  return _probabilities(areas.reduce(item_logits(q, k), mean), areas, None, 0)


def _item_weights(probs: jax.Array, areas: Areas, value_mode: str) -> jax.Array:
  """Weights (..., S) of the items' values, for area probabilities (..., A)."""
  if value_mode != 'sum':
    sizes = jnp.asarray(areas.sizes, jnp.float32)
    probs /= jnp.broadcast_to(sizes, probs.shape)
  return areas.spread(probs)


def explicit(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  areas: Areas,
  *,
  key_mode: str,
  value_mode: str,
  top_k: int = 0,
  dropout: Dropout | None = None,
  mask: jax.Array | None = None,
  params: Mapping[str, Any] | None = None,
  noise: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Area attention by its definition; see `attention.area_attention`.

  Returns:
    The output (B, T, H, V), and the weights of the items (B, H, T, S), whose
    rows do not sum to 1 for 'sum' values.
  """
  keys = area_keys(k, areas, key_mode, params, noise)
  values = area_statistic(v, areas, value_mode).astype(v.dtype)
  probs = _probabilities(item_logits(q, keys), areas, mask, top_k)
  dropped = dropout(probs) if dropout is not None else probs
  out = jnp.einsum('bhta,bahv->bthv', dropped.astype(v.dtype), values)
  return out, _item_weights(probs, areas, value_mode)


def factored(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  areas: Areas,
  *,
  value_mode: str,
  top_k: int = 0,
  dropout: Dropout | None = None,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Area attention with mean keys and sum or mean values.

  The numbers are those of `explicit`; the matrix products are those of
  ordinary attention. See `attention.area_attention` for the arguments.

  Returns:
    The output (B, T, H, V), and the weights of the items (B, H, T, S), whose
    rows do not sum to 1 for 'sum' values.
  """
  logits = areas.reduce(item_logits(q, k), mean)
  probs = _probabilities(logits, areas, mask, top_k)
  dropped = dropout(probs) if dropout is not None else probs
  weights = _item_weights(dropped, areas, value_mode)
  out = jnp.einsum('bhts,bshv->bthv', weights.astype(v.dtype), v)
  if dropout is not None:
    weights = _item_weights(probs, areas, value_mode)
  return out, weights
