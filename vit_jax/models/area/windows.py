"""Area attention of one head by sums over windows, forward and backward.

It serves mean keys with sum or mean values. Let s_j be the logit of a query for
item j. The probability of an area r with n items is

  P_r = exp(mean of s over r - log normalizer),

and for sum values, an item's value is weighted with the sum of P_r over the
areas that contain the item. The gradient has the same form. Let G_j be the
product of the output's gradient with the value of item j, G_r the sum of G_j
over the items of r (for mean values: their mean), and D the sum of P_r G_r over
all areas. Then

  ds_j = sum over the areas r that contain j of P_r (G_r - D) / n,

so the backward pass needs q, k, v and one number per query, the log normalizer.

The exponential of a mean is also a product of roots of exponentials, which
takes one exponential per item instead of one per item and area shape. That was
measured to be slower, because compilers compute the roots again in every
expression that uses them.

The memory is padded: the rows of its grid follow one another, separated by gaps
that no area may contain. An area of one shape is then a fixed set of offsets
from its first item, and the sums over all areas of this shape are sums of
shifted slices. Matrices have the N items of the padded memory as rows and the T
queries as columns, because TPUs and CPUs shift whole rows fastest.
"""

from collections.abc import Mapping
import functools
import math
import operator

import jax
import jax.numpy as jnp

from vit_jax.models.area.areas import Areas

GAP = -1e30  # logit of a gap: its exponential, relative to any item's, is 0

# An array for each area shape (height, width), with one value per area.
ByShape = Mapping[tuple[int, int], jax.Array]


def _row_stride(areas: Areas) -> int:
  """Number of entries from a grid row to the next in the padded memory.

  The gap after each row keeps an area from continuing in the next row.
  """
  rows, columns = areas.memory_shape
  return columns + (areas.max_area[1] - 1 if rows > 1 else 0)


def margin(areas: Areas) -> int:
  """Length of the gaps at both ends of the padded memory.

  It is the largest offset of an item from the first item of its area.
  """
  height, width = areas.max_area
  return (height - 1) * _row_stride(areas) + width - 1


def _cut(x: jax.Array, start: int, size: int, axis: int) -> jax.Array:
  return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


def pad_memory(x: jax.Array, areas: Areas, axis: int = 1) -> jax.Array:
  """Pads the S items of `axis` to N entries, with zeros in the gaps."""
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
  """Takes the S items out of a padded memory that has no gaps at its ends.

  Args:
    x: any array; `axis` has N - 2 margin entries.
    areas: the areas of the S items.
    axis: the axis of the items.

  Returns:
    x with S entries in `axis`.
  """
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


# Sums over windows of rows; the matrices are (..., N, T), with a row per item.


def _rows(x: jax.Array, start: int, size: int) -> jax.Array:
  return _cut(x, start, size, x.ndim - 2)


def _window_sums(
  x: jax.Array, areas: Areas
) -> dict[tuple[int, int], jax.Array]:
  """Sums over the items of each area, for each area shape.

  Row i of a result belongs to the area whose first item is in row i of x.
  """
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
  """exp(mean of s over the items) of each area, for each area shape."""
  return {
    shape: jnp.exp(x if shape == (1, 1) else x * (1 / math.prod(shape)))
    for shape, x in _window_sums(s, areas).items()
  }


def _sum_per_item(values: ByShape, areas: Areas, rows: int) -> jax.Array:
  """Sums, for each item, over the areas that contain it.

  Args:
    values: one value per area, in the row of the area's first item.
    areas: the areas of the items.
    rows: the number N of items in the padded memory.

  Returns:
    (..., N - 2 margin, T).
  """
  ends, stride = margin(areas), _row_stride(areas)
  size = rows - 2 * ends
  sums = []
  for y in range(areas.max_area[0]):
    for x in range(areas.max_area[1]):
      # Areas that have the item in their row y and column x.
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
  """What an area's probability contributes to the weight of each item."""
  if value_mode == 'sum':
    return weights
  return {shape: p * (1 / math.prod(shape)) for shape, p in weights.items()}


def _total(values: ByShape) -> jax.Array:
  """The sum over all areas, (..., 1, T)."""
  return _add([x.sum(-2, keepdims=True) for x in values.values()])


def weights_of_items(
  s: jax.Array, areas: Areas, value_mode: str
) -> tuple[jax.Array, jax.Array]:
  """The weights of the items' values in the output.

  Args:
    s: logits, (..., N, T).
    areas: the areas of the items.
    value_mode: 'sum' or 'mean'.

  Returns:
    The weights (..., N - 2 margin, T) and the log normalizer (..., 1, T).
  """
  # The largest logit of a query; the mean over an area is at most as large.
  row_max = s.max(-2, keepdims=True)
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
  """The weights of the items' values, and the gradient of the logits.

  Args:
    s: logits, (..., N, T).
    gv: G_j of the module docstring, (..., N, T).
    normalizer: the log normalizer (..., 1, T) of the forward pass.
    areas, value_mode: as in `weights_of_items`.

  Returns:
    The weights and the gradient, both (..., N - 2 margin, T).
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


# einsum specifications of the matrix products, named after the axis that is
# summed. n are items, t queries and k features. The first of each pair is for
# features (rows, K), the second for (K, rows), where the tokens are last.
_OVER_FEATURES = ('...nk,...tk->...nt', '...kn,...kt->...nt')
_OVER_ITEMS = ('...nt,...nk->...tk', '...kn,...nt->...kt')
_OVER_QUERIES = ('...nt,...tk->...nk', '...kt,...nt->...kn')


def _multiply(
  specs: tuple[str, str], a: jax.Array, b: jax.Array, tokens_last: bool
) -> jax.Array:
  if tokens_last and specs is not _OVER_FEATURES:
    a, b = b, a  # the second specification names the operands in this order
  return jnp.einsum(
    specs[tokens_last], a, b, preferred_element_type=jnp.float32
  )


def _without_ends(x: jax.Array, areas: Areas, tokens_last: bool) -> jax.Array:
  """A padded memory without the gaps at its two ends."""
  ends, axis = margin(areas), x.ndim - (1 if tokens_last else 2)
  return _cut(x, ends, x.shape[axis] - 2 * ends, axis)


def logits(
  q: jax.Array, k: jax.Array, bias: jax.Array, tokens_last: bool = False
) -> jax.Array:
  """The logits (..., N, T); see `forward` for the arguments."""
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
    q: (..., T, K).
    k, v: padded memories, (..., N, K) and (..., N, V).
    bias: `gap_bias(areas)`.
    areas: the areas of the items.
    value_mode: 'sum' or 'mean'.
    tokens_last: whether the last two axes of q, k, v and of the output are
      exchanged, (..., K, T) and so on.

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
    normalizer: the log normalizer that `forward` returned, (..., 1, T).
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
