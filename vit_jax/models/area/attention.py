"""Area attention (arXiv:1810.10126): queries attend to areas of the memory.

The memory lies on a grid; an area is every rectangle of at most `max_area`
items inside it. What differs from ordinary attention is only what is attended
to: an area has a key (by default the mean of its items' keys) and a value (by
default the sum of its items' values).

Two implementations give the same numbers. The **explicit** one builds the key
and value of each area, and serves every mode. The **factored** one holds for
mean keys with sum or mean values: an area's logit is then the mean of the
ordinary logits over it, and the output is the ordinary values weighted by the
probabilities of the areas that contain them. Nothing of size areas x head width
is formed, and the matrix products are those of ordinary attention. It is here
where probabilities of areas are needed (top-k, dropout, masks), and in
`area_factored` without them.

In a model, `area_attend` and `AreaAttention` take the place of `layers.attend`:
`MultiHeadDotProductAttention(..., attend_fn=area_attend((1, 2)))` for areas of
at most two neighbours in the token sequence (class token included, as in the
published model), `area_attend((2, 2), grid=(14, 14))` for squares of a patch
grid, where a class token is an area of its own.

B batch, T queries, S memory items, A areas, H heads, K and V head widths.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.area import factored
from vit_jax.models.area.areas import Areas
from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel

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
LEARNED_KEY_MODES = KEY_MODES[3:]  # these have parameters
VALUE_MODES = ('sum', 'mean', 'max')
IMPLS = ('auto', 'factored', 'kernel', 'explicit')


def _mean(items):
  return sum(items) / len(items)


def _std(items):
  mean = _mean(items)
  return jnp.sqrt(_mean([(x - mean) ** 2 for x in items]) + 1e-6)


STATISTICS = {
  'sum': sum,
  'mean': _mean,
  'std': _std,  # sqrt(variance + 1e-6)
  'max': lambda items: functools.reduce(jnp.maximum, items),
}


def area_statistic(x, areas: Areas, name: str, axis: int = 1) -> jax.Array:
  """Statistic `name` (a key of STATISTICS) of each area's items, in float32.

  Element-wise; `axis` of x goes from S to A entries.
  """
  return areas.reduce(x.astype(jnp.float32), STATISTICS[name], axis)


def area_keys(k, areas: Areas, mode: str = 'mean', params=None, noise=None):
  """Keys of the areas, (B, S, H, K) -> (B, A, H, K), eq. 3 and section 3.2.

  Args:
    k: (B, S, H, K) keys of the items.
    areas: the areas.
    mode: one of KEY_MODES.
    params: of the learned modes, shared by heads: height_embedding
      (max height, K/2), width_embedding (max width, K/2), Dense_0 and Dense_1
      with kernel and bias, the last of width K.
    noise: PRNG key for the sampled modes, which take the mean without it.
  """
  dtype, statistic = k.dtype, functools.partial(area_statistic, k, areas)
  if mode in ('max', 'max_concat'):
    x = statistic('max')
  else:
    x = statistic('mean')
  if mode.startswith('sample') and noise is not None:
    x += statistic('std') * jax.random.normal(noise, x.shape)
  if mode in ('mean', 'max', 'sample'):
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
  dense = lambda x, p: (
    x @ p['kernel'].astype(dtype)
    + jnp.broadcast_to(p['bias'].astype(dtype), x.shape[:-1] + p['bias'].shape)
  )
  return dense(
    jax.nn.relu(dense(x.astype(dtype), params['Dense_0'])), params['Dense_1']
  )


def _probabilities(logits, areas, mask, top_k):
  """Softmax over areas (..., A), the top k of them renormalised."""
  if mask is not None:
    mask = areas.reduce(
      mask, lambda items: functools.reduce(jnp.logical_and, items)
    )
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  probs = jax.nn.softmax(logits)
  if top_k:
    top, _ = jax.lax.top_k(
      jax.lax.stop_gradient(probs), min(top_k, probs.shape[-1])
    )
    probs = jnp.where(probs >= top[..., -1:], probs, 0.0)  # ties survive
    probs /= probs.sum(-1, keepdims=True)
  return probs


def _item_weights(probs, areas, value_mode):
  """Weights (..., S) of the items' values, from probabilities of areas."""
  if value_mode != 'sum':
    sizes = jnp.asarray(areas.sizes, jnp.float32)
    probs /= jnp.broadcast_to(sizes, probs.shape)
  return areas.spread(probs)


def _explicit(
  q, k, v, areas, key_mode, value_mode, top_k, dropout, mask, params, noise
):
  """Area attention by its definition; returns also the items' weights."""
  keys = area_keys(k, areas, key_mode, params, noise)
  values = area_statistic(v, areas, value_mode).astype(v.dtype)
  logits = jnp.einsum(
    'bthk,bahk->bhta',
    q * (q.shape[-1] ** -0.5),
    keys,
    preferred_element_type=jnp.float32,
  )
  probs = _probabilities(logits, areas, mask, top_k)
  dropped = dropout(probs) if dropout is not None else probs
  out = jnp.einsum('bhta,bahv->bthv', dropped.astype(v.dtype), values)
  return out, _item_weights(probs, areas, value_mode)


def _logits(q, k):
  return jnp.einsum(
    'bthk,bshk->bhts',
    q * (q.shape[-1] ** -0.5),
    k,
    preferred_element_type=jnp.float32,
  )


def _windows(q, k, v, areas, value_mode, top_k, dropout, mask):
  """Factored form with the probability of each area (B, H, T, A)."""
  logits = areas.reduce(_logits(q, k), _mean)
  probs = _probabilities(logits, areas, mask, top_k)
  dropped = dropout(probs) if dropout is not None else probs
  weights = _item_weights(dropped, areas, value_mode)
  out = jnp.einsum('bhts,bshv->bthv', weights.astype(v.dtype), v)
  if dropout is not None:
    weights = _item_weights(probs, areas, value_mode)
  return out, weights


def area_attention(
  q,
  k,
  v,
  *,
  memory_shape: tuple[int, int],
  max_area: tuple[int, int],
  separate_first: bool = False,
  key_mode: str = 'mean',
  value_mode: str = 'sum',
  top_k: int = 0,
  dropout: Callable | None = None,
  mask=None,
  impl: str = 'auto',
  weights: bool = True,
  params=None,
  noise=None,
):
  """Area attention (arXiv:1810.10126), softmax(q.key / sqrt(K)) over areas.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    memory_shape: (rows, columns) on which the S items lie, row-major.
    max_area: (height, width) of the largest area.
    separate_first: item 0 is no part of the grid but an area of its own.
    key_mode: one of KEY_MODES; mean, max, and those of `area_keys`.
    value_mode: 'sum', 'mean' or 'max' of the items' values.
    top_k: if not 0, only the k most probable areas of each query (and ties of
      the k-th) are kept, and renormalised.
    dropout: function applied to the probabilities (B, H, T, A).
    mask: bool, broadcastable to (B, H, T, S); an area that contains a False
      item is not attended to.
    impl: 'explicit'; 'factored' (mean keys, sum or mean values); 'kernel', the
      same as a Pallas kernel, without top_k, dropout and mask; or 'auto', which
      factors where it can, on TPUs by the kernel where it pays.
    weights: whether to return the items' weights.
    params, noise: of the learned and sampled modes, see `area_keys`.

  Returns:
    (B, T, H, V), and the float32 weights (B, H, T, S) with which the items'
    values enter it (as if spread evenly over an area for 'max' values), before
    dropout, scaled to rows that sum to 1; None without `weights`.

  Raises:
    ValueError: unknown mode, or shapes that do not fit.
  """
  areas = Areas(tuple(memory_shape), tuple(max_area), separate_first)
  for name, value, allowed in (
    ('key_mode', key_mode, KEY_MODES),
    ('value_mode', value_mode, VALUE_MODES),
    ('impl', impl, IMPLS),
  ):
    if value not in allowed:
      raise ValueError(f'{name}={value!r}; allowed: {", ".join(allowed)}')
  if k.shape[1] != areas.items or v.shape[1] != areas.items:
    raise ValueError(
      f'{k.shape[1]} keys and {v.shape[1]} values for a memory of '
      f'{memory_shape}{" and one item before it" * separate_first}, '
      f'{areas.items} items'
    )
  if key_mode in LEARNED_KEY_MODES and params is None:
    raise ValueError(
      f'key_mode={key_mode!r} has parameters: give params, or '
      'use the module AreaAttention'
    )
  factors = key_mode == 'mean' and value_mode != 'max'
  plain = not top_k and dropout is None and mask is None
  if impl in ('factored', 'kernel') and not factors:
    raise ValueError(
      f"impl={impl!r} needs key_mode='mean' and value_mode 'sum' or 'mean', "
      f"got {key_mode!r} and {value_mode!r}; use impl='auto'"
    )
  if impl == 'kernel' and not plain:
    raise ValueError(
      "impl='kernel' takes no top_k, dropout or mask; use impl='auto'"
    )
  if mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:-1], areas.items))
  if impl == 'explicit' or not factors:
    out, mixed = _explicit(
      q, k, v, areas, key_mode, value_mode, top_k, dropout, mask, params, noise
    )
  elif not plain:
    out, mixed = _windows(q, k, v, areas, value_mode, top_k, dropout, mask)
  else:
    program = {'kernel': 'kernel', 'factored': 'jnp'}.get(impl, 'auto')
    out = factored.factored(q, k, v, areas, value_mode, program)
    mixed = None
    if weights:
      mixed = factored.item_weights(q, k, areas, value_mode)
  if not weights:
    return out, None
  return out, mixed / mixed.sum(-1, keepdims=True)


def _memory(items: int, grid: tuple[int, int] | None):
  """memory_shape and separate_first of S tokens, for a patch grid or none."""
  if grid is None:
    return dict(memory_shape=(1, items), separate_first=False)
  if items not in (math.prod(grid), math.prod(grid) + 1):
    raise ValueError(
      f'{items} tokens are neither the {grid[0]}x{grid[1]} '
      'patches of grid nor these and a class token'
    )
  return dict(
    memory_shape=tuple(grid), separate_first=items == math.prod(grid) + 1
  )


@dataclasses.dataclass(frozen=True)
class area_attend:  # pylint: disable=invalid-name
  """Area attention with the signature of `layers.attend`, no parameters.

  Attributes:
    max_area: (height, width) of the largest area.
    grid: None for areas in the sequence of all tokens, the class token being
      item 0; (rows, columns) for areas in the patch grid, beside which a class
      token, if there is one, is an area of its own.
    value_mode, top_k, impl, weights: see `area_attention`.
  """

  max_area: tuple[int, int]
  grid: tuple[int, int] | None = None
  value_mode: str = 'sum'
  top_k: int = 0
  impl: str = 'auto'
  weights: bool = True

  def __call__(self, q, k, v, *, mask=None, dropout=None):
    """(B, T, H, K), (B, S, H, K), (B, S, H, V) -> (B, T, H, V), weights."""
    return area_attention(
      q,
      k,
      v,
      **_memory(k.shape[1], self.grid),
      max_area=self.max_area,
      value_mode=self.value_mode,
      top_k=self.top_k,
      impl=self.impl,
      weights=self.weights,
      mask=mask,
      dropout=dropout,
    )


class AreaAttention(nn.Module):
  """Area attention of any mode, with the signature of `layers.attend`.

  The learned key modes have parameters, which all heads share:
  `height_embedding`, `width_embedding`, `Dense_{0,1}/{kernel,bias}`. Sampled
  modes draw where there is an rng stream 'dropout', and take the mean
  elsewhere. See `area_attend` for `grid`, `area_attention` for the rest.
  """

  max_area: tuple[int, int]
  grid: tuple[int, int] | None = None
  key_mode: str = 'mean'
  value_mode: str = 'sum'
  top_k: int = 0
  impl: str = 'auto'

  @nn.compact
  def __call__(self, q, k, v, *, mask=None, dropout=None):
    """(B, T, H, K), (B, S, H, K), (B, S, H, V) -> (B, T, H, V), weights."""
    params = None
    if self.key_mode in LEARNED_KEY_MODES:
      params = self._parameters(k.shape[-1])
    noise = None
    if self.key_mode.startswith('sample') and self.has_rng('dropout'):
      noise = self.make_rng('dropout')
    return area_attention(
      q,
      k,
      v,
      **_memory(k.shape[1], self.grid),
      max_area=self.max_area,
      key_mode=self.key_mode,
      value_mode=self.value_mode,
      top_k=self.top_k,
      impl=self.impl,
      mask=mask,
      dropout=dropout,
      params=params,
      noise=noise,
    )

  def _parameters(self, width: int):
    if width % 2:
      raise ValueError(
        f'key_mode={self.key_mode!r} needs an even head width '
        f'for its size embedding, got {width}'
      )
    height, columns = self.max_area
    table = nn.initializers.normal(1.0)
    inputs = width * {'concat': 3, 'max_concat': 2, 'sample_concat': 2}.get(
      self.key_mode, 1
    )
    return {
      'height_embedding': self.param(
        'height_embedding', table, (height, width // 2)
      ),
      'width_embedding': self.param(
        'width_embedding', table, (columns, width // 2)
      ),
      'Dense_0': _Affine(width, name='Dense_0')(inputs),
      'Dense_1': _Affine(width, name='Dense_1')(width),
    }


class _Affine(nn.Module):
  """Parameters of a Dense layer, PyTorch's initialisers."""

  features: int

  @nn.compact
  def __call__(self, inputs: int):
    return {
      'kernel': self.param(
        'kernel', torch_conv_kernel, (inputs, self.features)
      ),
      'bias': self.param('bias', torch_conv_bias(inputs), (self.features,)),
    }
