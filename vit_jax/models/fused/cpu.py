"""Attention on a CPU, with its own gradient.

The heads come before the tokens in memory, so that each matrix product of a
head reads and writes neighboring numbers. Where a gradient is needed, the
softmax is not normalized before it is used: its sums divide the output, and in
the backward pass the gradient of the output. That saves two passes over the
T x S numbers of each head, of which only one array is kept between forward and
backward pass.

B batch, T queries, S keys, H heads, K and V head widths.
"""

import jax
import jax.numpy as jnp

from vit_jax.models import onednn, onednn_products
from vit_jax.models.cpu_products import by_rows
from vit_jax.models.fusion import row_products


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).

  Returns:
    (B, T, H, V).
  """
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  weights, sums = _softmax(q, k)
  y = _product((weights / sums).astype(v.dtype), v, rows=True, dtype=v.dtype)
  return jnp.swapaxes(y, 1, 2)


def _softmax(q, k):
  """exp(q.k / sqrt(K)) with its largest number 1, and the sums of its rows."""
  logits = _product(q, k, transpose_b=True)
  # The logits are scaled here and not the queries, because a pass over the
  # queries would round them to bfloat16 once more.
  logits = (logits - logits.max(-1, keepdims=True)) * (q.shape[-1] ** -0.5)
  weights = jnp.exp(logits)
  return weights, weights.sum(-1, keepdims=True)


def _forward(q, k, v):
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  weights, sums = _softmax(q, k)
  weights = weights.astype(v.dtype)
  y = (_product(weights, v, rows=True) / sums).astype(v.dtype)
  return jnp.swapaxes(y, 1, 2), (q, k, v, y, weights, sums)


def _backward(kept, g):
  q, k, v, y, weights, sums = kept
  g = jnp.swapaxes(g, 1, 2) / sums
  mean = row_products(g, y)
  g = g.astype(v.dtype)
  grad_v = _product(weights, g, transpose_a=True)
  grad_probs = _product(g, v, transpose_b=True)
  grad_logits = (weights * (grad_probs - mean)).astype(q.dtype)
  scale = q.shape[-1] ** -0.5
  grad_q = _product(grad_logits, k, rows=True) * scale
  grad_k = _product(grad_logits, q, transpose_a=True) * scale
  return tuple(
    jnp.swapaxes(x.astype(v.dtype), 1, 2) for x in (grad_q, grad_k, grad_v)
  )


def _product(
  a, b, transpose_a=False, transpose_b=False, rows=False, dtype=None
):
  """Batched products, computed in float32, or in float64 of float64.

  Args:
    a, b: (B, H, M, K), (B, H, K, N).
    transpose_a, transpose_b: whether the last two axes are exchanged.
    rows: whether the compiler's own product is computed by rows.
    dtype: of the result; None means that in which it is computed.

  Returns:
    (B, H, M, N).
  """
  if onednn.is_used(a, b):
    return onednn_products.product(
      a,
      b,
      transpose_a=transpose_a,
      transpose_b=transpose_b,
      dtype=dtype or jnp.float32,
    )
  left = 'bhkm' if transpose_a else 'bhmk'
  right = 'bhnk' if transpose_b else 'bhkn'
  wide = jnp.promote_types(a.dtype, jnp.float32)
  y = jnp.einsum(f'{left},{right}->bhmn', a, b, preferred_element_type=wide)
  return (by_rows(y) if rows else y).astype(dtype or wide)


attend.defvjp(_forward, _backward)
