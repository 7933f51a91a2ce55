"""Area attention of one head by sums over windows, forward and backward.

For mean keys with sum or mean values. With s the logits of a query over the
items, the weight of an area r of n items is

  P_r = exp(mean of s over r - log normalizer),

and an item's value enters the output with the sum of P over the areas that
contain the item. The gradient has the same form. With G the products of the
output's gradient with the values, and D the sum over areas of P_r times the
sum of G over r (for mean values: the mean of G over r),

  ds_j = sum over areas r that contain j of P_r (sum of G over r - D) / n,

so the backward pass needs q, k, v and one number per query, the log
normalizer. An exponential of a mean is also a product of roots, which takes one
exponential per item for areas of two. Measured, sums and one exponential per
area shape are faster, because compilers evaluate fused roots repeatedly.

The memory is padded: the rows of its grid follow one another, with gaps that
no area may contain. An area is then a set of fixed offsets from its first item,
whatever the grid, and the sums over all areas of one shape are sums of shifted
slices. Matrices have the N items of the padded memory as rows and the T queries
as columns. A shift then moves whole rows, which TPUs and CPUs do fastest.
"""

from collections.abc import Mapping
import functools
import math
import operator

import jax
import jax.numpy as jnp

from vit_jax.models.area.areas import Areas

GAP = -1e30  # logit of a gap; the exponential of its difference to others is 0

ByShape = Mapping[tuple[int, int], jax.Array]  # (height, width) of an area: ...


def _row_stride(areas: Areas) -> int:
  """Distance of two grid rows in the padded memory.

  The gap behind a row keeps areas from running over the row's end.
  """
  rows, columns = areas.memory_shape
  return columns + (areas.max_area[1] - 1 if rows > 1 else 0)


def margin(areas: Areas) -> int:
  """Largest offset between two items of an area; gaps at both ends."""
  height, width = areas.max_area
  return (height - 1) * _row_stride(areas) + width - 1


def _cut(x: jax.Array, start: int, size: int, axis: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


def pad_memory(x: jax.Array, areas: Areas, axis: int = 1) -> jax.Array:
  """Pads the S items of an axis to N entries, with zeros in the gaps."""
  first, ends = int(areas.separate_first), margin(areas)
  rows, columns = areas.memory_shape
  gap = lambda n: jnp.zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype)
  pieces = [gap(ends)]
  if first:
    pieces += [_cut(x, 0, 1, axis), gap(ends)]
  row_gap = _row_stride(areas) - columns
  if not row_gap:
    pieces.append(_cut(x, first, rows * columns, axis))
  else:
    for row in range(rows):
      pieces.append(_cut(x, first + row * columns, columns, axis))
      pieces.append(gap(row_gap))
  pieces.append(gap(ends))
  return jnp.concatenate([p for p in pieces if p.shape[axis]], axis=axis)


def unpad_memory(x: jax.Array, areas: Areas, axis: int = 1) -> jax.Array:
  """The S items of a padded memory whose end gaps are already cut off."""
  stride, (rows, columns) = _row_stride(areas), areas.memory_shape
  first = int(areas.separate_first)
  start = first * (1 + margin(areas))
  pieces = [_cut(x, 0, first, axis)] if first else []
  if stride == columns:
    pieces.append(_cut(x, start, rows * columns, axis))
  else:
    pieces += [
      _cut(x, start + row * stride, columns, axis) for row in range(rows)
    ]
  return jnp.concatenate(pieces, axis=axis)


def gap_bias(areas: Areas) -> jax.Array:
  """(N, 1) float32: 0 where the padded memory has an item, GAP elsewhere."""
  return (1.0 - pad_memory(jnp.ones((1, areas.items, 1)), areas)[0]) * GAP


# Sums over windows of the matrices (..., N, T), whose rows are items.


def _rows(x: jax.Array, start: int, size: int) -> jax.Array:
  return _cut(x, start, size, x.ndim - 2)


def _window_sums(
  x: jax.Array, areas: Areas
) -> dict[tuple[int, int], jax.Array]:
  """For each area shape, the sum over the area that begins at each row."""
  height, width = areas.max_area
  stride, size = _row_stride(areas), x.shape[-2]
  sums = {(1, 1): x}
  for w in range(2, width + 1):
    n = size - (w - 1)
    sums[1, w] = _rows(sums[1, w - 1], 0, n) + _rows(x, w - 1, n)
  for h in range(2, height + 1):
    for w in range(1, width + 1):
      n = size - (w - 1) - (h - 1) * stride
      sums[h, w] = _rows(sums[h - 1, w], 0, n) + _rows(
        sums[1, w], (h - 1) * stride, n
      )
  return sums


def _area_weights(
  s: jax.Array, areas: Areas
) -> dict[tuple[int, int], jax.Array]:
  """For each area shape, exp(mean of s over each area)."""
  return {
    shape: jnp.exp(x if shape == (1, 1) else x * (1 / math.prod(shape)))
    for shape, x in _window_sums(s, areas).items()
  }


def _sum_per_item(values: ByShape, areas: Areas, rows: int) -> jax.Array:
  """Each item's sum over the areas that contain it.

  Args:
    values: one value per area, at the row of the area's first item.
    areas: the areas.
    rows: N.

  Returns:
    (..., N - 2 margin, T).
  """
  ends, stride = margin(areas), _row_stride(areas)
  size = rows - 2 * ends
  sums = []
  for y in range(areas.max_area[0]):
    for x in range(areas.max_area[1]):
      # The areas in which the item is in row y and column x.
      start = ends - (y * stride + x)
      sums.append(
        _add(
          [
            _rows(value, start, size)
            for (h, w), value in values.items()
            if h > y and w > x
          ]
        )
      )
  return _add(sums)


def _add(terms: list[jax.Array]) -> jax.Array:
  return functools.reduce(operator.add, terms)


def _value_weights(weights: ByShape, value_mode: str) -> ByShape:
  """Weights of areas -> weights of the values of their items."""
  if value_mode == 'sum':
    return weights
  return {shape: p * (1 / math.prod(shape)) for shape, p in weights.items()}


def _total(values: ByShape) -> jax.Array:
  """The sum over all areas, (..., 1, T)."""
  return _add([x.sum(-2, keepdims=True) for x in values.values()])


def weights_of_items(
  s: jax.Array, areas: Areas, value_mode: str
) -> tuple[jax.Array, jax.Array]:
  """The matrices of the forward pass.

  Args:
    s: logits, (..., N, T).
    areas: the areas.
    value_mode: 'sum' or 'mean'.

  Returns:
    Weights of the items (..., N - 2 margin, T), log normalizer (..., 1, T).
  """
  row_max = s.max(-2, keepdims=True)  # no mean over an area exceeds it
  weights = _area_weights(s - row_max, areas)
  normalizer = _total(weights)
  items = _sum_per_item(_value_weights(weights, value_mode), areas, s.shape[-2])
  return items * (1 / normalizer), row_max + jnp.log(normalizer)


def _gradient_of_logits(
  s: jax.Array,
  gv: jax.Array,
  normalizer: jax.Array,
  areas: Areas,
  value_mode: str,
) -> tuple[jax.Array, jax.Array]:
  """The matrices of the backward pass; gv is G of the module docstring.

  Returns:
    Weights of the items and gradient of s, both (..., N - 2 margin, T).
  """
  weights = _area_weights(s - normalizer, areas)
  of_values = _value_weights(weights, value_mode)
  sums = _window_sums(gv, areas)
  inner = {shape: p * sums[shape] for shape, p in of_values.items()}
  row = _total(inner)
  ds = {
    shape: (x - weights[shape] * row) * (1 / math.prod(shape))
    for shape, x in inner.items()
  }
  rows = s.shape[-2]
  return _sum_per_item(of_values, areas, rows), _sum_per_item(ds, areas, rows)


# Products of matrices (N, T) with features of items and queries. Features are
# (rows, K), or (K, rows) if the tokens are last. Results are float32.
_OVER_FEATURES = ('...nk,...tk->...nt', '...kn,...kt->...nt')
_OVER_ITEMS = ('...nt,...nk->...tk', '...kn,...nt->...kt')
_OVER_QUERIES = ('...nt,...tk->...nk', '...kt,...nt->...kn')


def _multiply(
  specs: tuple[str, str], a: jax.Array, b: jax.Array, tokens_last: bool
) -> jax.Array:
  if tokens_last and specs is not _OVER_FEATURES:
    a, b = b, a  # the result's first axis comes from the first operand
  return jnp.einsum(
    specs[tokens_last], a, b, preferred_element_type=jnp.float32
  )


def _without_ends(x: jax.Array, areas: Areas, tokens_last: bool) -> jax.Array:
  """The padded memory without the gaps at its two ends."""
  ends, axis = margin(areas), x.ndim - (1 if tokens_last else 2)
  return _cut(x, ends, x.shape[axis] - 2 * ends, axis)


def logits(
  q: jax.Array, k: jax.Array, bias: jax.Array, tokens_last: bool = False
) -> jax.Array:
  """(..., N, T) of queries and the padded memory of keys."""
  s = _multiply(_OVER_FEATURES, k, q, tokens_last)
  s = s * q.shape[-2 if tokens_last else -1] ** -0.5
  return s + jnp.broadcast_to(bias, s.shape)


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array,
  areas: Areas,
  value_mode: str,
  tokens_last: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Area attention of one head, or of a batch of heads.

  Args:
    q: (..., T, K); with `tokens_last`, here and below, the last two axes are
      exchanged.
    k, v: padded memories, (..., N, K) and (..., N, V).
    bias: `gap_bias(areas)`.
    areas: the areas.
    value_mode: 'sum' or 'mean'.
    tokens_last: the order of the last two axes.

  Returns:
    The output (..., T, V) and the log normalizer (..., 1, T).
  """
  weights, normalizer = weights_of_items(
    logits(q, k, bias, tokens_last), areas, value_mode
  )
  out = _multiply(
    _OVER_ITEMS,
    weights.astype(v.dtype),
    _without_ends(v, areas, tokens_last),
    tokens_last,
  )
  return out.astype(v.dtype), normalizer


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array,
  normalizer: jax.Array,
  g: jax.Array,
  areas: Areas,
  value_mode: str,
  tokens_last: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of q, k and v; see `forward`.

  Args:
    q, k, v, bias, areas, value_mode, tokens_last: as in `forward`.
    normalizer: the second result of `forward`.
    g: gradient of the output, (..., T, V).

  Returns:
    Gradients of q, and of k and v without the gaps at the ends.
  """
  weights, ds = _gradient_of_logits(
    logits(q, k, bias, tokens_last),
    _multiply(_OVER_FEATURES, v, g, tokens_last),
    normalizer,
    areas,
    value_mode,
  )
  ds = (ds * q.shape[-2 if tokens_last else -1] ** -0.5).astype(q.dtype)
  keys = _without_ends(k, areas, tokens_last)
  dq = _multiply(_OVER_ITEMS, ds, keys, tokens_last).astype(q.dtype)
  dk = _multiply(_OVER_QUERIES, ds, q, tokens_last).astype(k.dtype)
  weights = weights.astype(g.dtype)
  dv = _multiply(_OVER_QUERIES, weights, g, tokens_last).astype(v.dtype)
  return dq, dk, dv
