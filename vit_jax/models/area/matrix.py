"""Area attention of one head without areas: mean keys, sum or mean values.

With s the logits of a query over the items, the weight of an area r of n items
is P_r = exp(mean of s over r - log normaliser), and an item's value enters the
output with the sum of P over the areas that contain it. The gradient has the
same form: with G the products of the output's gradient with the values, and
D = sum over areas of P_r times the sum of G over r,

  ds_j = sum over areas r that contain j of P_r (sum of G over r - D) / n,

so the backward pass needs q, k, v and one number a row, the log normaliser.
(For mean values, the means of G.) exp of a mean is also a product of roots,
one exponential per item for areas of two; measured, sums and one exponential
per area shape are faster, as compilers compute fused roots repeatedly.

The memory is laid out as a strip: the rows of its grid one after the other,
with gaps that no area may contain. An area is then a set of fixed offsets from
its first item, whatever the grid, and the areas of one shape are sums of
shifted slices. Matrices have the strip's N items as rows and the T queries as
columns: shifts then move whole rows, which TPUs and CPUs do best.
"""

import math

import jax
import jax.numpy as jnp

GAP = -1e30  # logit of a gap: its exponential is 0, whatever the rest


def _columns(areas) -> int:
  """Length of a grid row on the strip: no area runs over a row's end."""
  rows, columns = areas.memory_shape
  return columns + (areas.max_area[1] - 1 if rows > 1 else 0)


def reach(areas) -> int:
  """Largest offset between two items of an area."""
  height, width = areas.max_area
  return (height - 1) * _columns(areas) + width - 1


def _cut(x, start: int, size: int, axis: int):
  return jax.lax.slice_in_dim(x, start, start + size, axis=axis)


def strip(x, areas, axis: int = 1):
  """Lays the S items of an axis on the strip: N entries, zeros in the gaps."""
  lead, ends = int(areas.separate_first), reach(areas)
  rows, columns = areas.memory_shape
  gap = lambda n: jnp.zeros((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype)
  parts = [gap(ends)]
  if lead:
    parts += [_cut(x, 0, 1, axis), gap(ends)]
  between = _columns(areas) - columns
  if not between:
    parts.append(_cut(x, lead, rows * columns, axis))
  else:
    for row in range(rows):
      parts += [_cut(x, lead + row * columns, columns, axis), gap(between)]
  parts.append(gap(ends))
  return jnp.concatenate([p for p in parts if p.shape[axis]], axis=axis)


def unstrip(x, areas, axis: int = 1):
  """The S items of a strip without its outer gaps: the adjoint of `strip`."""
  step, (rows, columns) = _columns(areas), areas.memory_shape
  lead = int(areas.separate_first)
  start = lead * (1 + reach(areas))
  parts = [_cut(x, 0, lead, axis)] if lead else []
  if step == columns:
    parts.append(_cut(x, start, rows * columns, axis))
  else:
    parts += [_cut(x, start + row * step, columns, axis) for row in range(rows)]
  return jnp.concatenate(parts, axis=axis)


def bias(areas):
  """(N, 1) float32: 0 where the strip has an item, GAP elsewhere."""
  return (1.0 - strip(jnp.ones((1, areas.items, 1)), areas)[0]) * GAP


# Matrices (..., N, T) of the strip's rows and a row's shifts.


def _rows(x, start: int, size: int):
  return _cut(x, start, size, x.ndim - 2)


def _windows(x, areas):
  """{shape: sum of the items of the area that begins at each row}."""
  height, width = areas.max_area
  step, size = _columns(areas), x.shape[-2]
  sums = {(1, 1): x}
  for w in range(2, width + 1):
    n = size - (w - 1)
    sums[1, w] = _rows(sums[1, w - 1], 0, n) + _rows(x, w - 1, n)
  for h in range(2, height + 1):
    for w in range(1, width + 1):
      n = size - (w - 1) - (h - 1) * step
      sums[h, w] = _rows(sums[h - 1, w], 0, n) + _rows(
        sums[1, w], (h - 1) * step, n
      )
  return sums


def _weights(s, areas):
  """{shape: exp(mean of s over each area)}."""
  return {
    shape: jnp.exp(x if shape == (1, 1) else x * (1 / math.prod(shape)))
    for shape, x in _windows(s, areas).items()
  }


def _collect(parts, areas, rows: int):
  """Each item's sum over the areas that contain it: (..., N - 2 reach, T)."""
  ends, columns = reach(areas), _columns(areas)
  size = rows - 2 * ends
  total = None
  for y in range(areas.max_area[0]):
    for x in range(areas.max_area[1]):
      # Areas in which some item stands at (y, x).
      start = ends - (y * columns + x)
      part = sum(
        _rows(p, start, size) for (h, w), p in parts.items() if h > y and w > x
      )
      total = part if total is None else total + part
  return total


def _scaled(parts, value_mode):
  """Weights of areas -> weights of their items' values."""
  if value_mode == 'sum':
    return parts
  return {shape: p * (1 / math.prod(shape)) for shape, p in parts.items()}


def _sum_rows(parts):
  return sum(p.sum(-2, keepdims=True) for p in parts.values())


def forward_matrices(s, areas, value_mode):
  """Item weights (..., N - 2 reach, T) and log normaliser (..., 1, T)."""
  row_max = s.max(-2, keepdims=True)  # no mean over an area exceeds it
  parts = _weights(s - row_max, areas)
  normaliser = _sum_rows(parts)
  weights = _collect(_scaled(parts, value_mode), areas, s.shape[-2])
  return weights * (1 / normaliser), row_max + jnp.log(normaliser)


def _backward_matrices(s, gv, normaliser, areas, value_mode):
  """Item weights and gradient of the logits, both (..., N - 2 reach, T)."""
  parts = _weights(s - normaliser, areas)
  sums = _windows(gv, areas)
  inner = {
    shape: p * sums[shape] for shape, p in _scaled(parts, value_mode).items()
  }
  row = _sum_rows(inner)
  ds = {
    shape: (x - parts[shape] * row) * (1 / math.prod(shape))
    for shape, x in inner.items()
  }
  weights = _collect(_scaled(parts, value_mode), areas, s.shape[-2])
  return weights, _collect(ds, areas, s.shape[-2])


# Products of the matrices (N, T) with features of items and queries, which are
# (rows, K), or (K, rows) with `last`: float32.
_FEATURES = ('...nk,...tk->...nt', '...kn,...kt->...nt')
_OVER_ITEMS = ('...nt,...nk->...tk', '...kn,...nt->...kt')
_OVER_QUERIES = ('...nt,...tk->...nk', '...kt,...nt->...kn')


def _product(specs, a, b, last: bool):
  if last and specs is not _FEATURES:
    a, b = b, a  # the result's first axis comes from the first operand
  return jnp.einsum(specs[last], a, b, preferred_element_type=jnp.float32)


def _inner(x, areas, last: bool):
  """The strip without its outer gaps."""
  ends, axis = reach(areas), x.ndim - (1 if last else 2)
  return _cut(x, ends, x.shape[axis] - 2 * ends, axis)


def logits(q, k, bias, last: bool = False):
  """(..., N, T) of queries and the strip of keys."""
  s = _product(_FEATURES, k, q, last) * q.shape[-2 if last else -1] ** -0.5
  return s + jnp.broadcast_to(bias, s.shape)


# One head, or a batch of heads: q (..., T, K), strips k and v (..., N, K), or
# with the last two axes exchanged.


def forward(q, k, v, bias, areas, value_mode, last: bool = False):
  """Output, like q with v's features, and log normaliser (..., 1, T)."""
  weights, normaliser = forward_matrices(
    logits(q, k, bias, last), areas, value_mode
  )
  out = _product(
    _OVER_ITEMS, weights.astype(v.dtype), _inner(v, areas, last), last
  )
  return out.astype(v.dtype), normaliser


def backward(
  q, k, v, bias, normaliser, g, areas, value_mode, last: bool = False
):
  """Gradients of q and of the strips k and v without their outer gaps."""
  weights, ds = _backward_matrices(
    logits(q, k, bias, last),
    _product(_FEATURES, v, g, last),
    normaliser,
    areas,
    value_mode,
  )
  ds = (ds * q.shape[-2 if last else -1] ** -0.5).astype(q.dtype)
  dq = _product(_OVER_ITEMS, ds, _inner(k, areas, last), last).astype(q.dtype)
  dk = _product(_OVER_QUERIES, ds, q, last).astype(k.dtype)
  dv = _product(_OVER_QUERIES, weights.astype(g.dtype), g, last).astype(v.dtype)
  return dq, dk, dv
