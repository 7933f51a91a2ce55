"""Attention on a CPU, with its own gradient.

The heads come before the tokens in memory, so that each matrix product of a
head reads and writes neighboring numbers. The softmax is not normalized before
it is used: its sums divide the output, and in the backward pass the gradient of
the output. That saves two passes over the T x S numbers of each head, of which
only one array is kept between forward and backward pass.

B batch, T queries, S keys, H heads, K and V head widths.
"""

import jax
import jax.numpy as jnp

from vit_jax.models.cpu_products import by_rows


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).

  Returns:
    (B, T, H, V).
  """
  return _forward(q, k, v)[0]


def _forward(q, k, v):
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  q = q * (q.shape[-1] ** -0.5)
  logits = jnp.einsum('bhtk,bhsk->bhts', q, k).astype(jnp.float32)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  sums = weights.sum(-1, keepdims=True)
  weights = weights.astype(v.dtype)
  y = by_rows(jnp.einsum('bhts,bhsv->bhtv', weights, v))
  y = (y / sums).astype(v.dtype)
  return jnp.swapaxes(y, 1, 2), (q, k, v, y, weights, sums)


def _backward(kept, g):
  q, k, v, y, weights, sums = kept
  g = jnp.swapaxes(g, 1, 2) / sums
  mean = (g * y).sum(-1, keepdims=True)
  g = g.astype(v.dtype)
  grad_v = jnp.einsum('bhts,bhtv->bhsv', weights, g)
  grad_probs = jnp.einsum('bhtv,bhsv->bhts', g, v).astype(jnp.float32)
  grad_logits = (weights * (grad_probs - mean)).astype(q.dtype)
  grad_q = by_rows(jnp.einsum('bhts,bhsk->bhtk', grad_logits, k))
  grad_q = grad_q * (q.shape[-1] ** -0.5)
  grad_k = jnp.einsum('bhts,bhtk->bhsk', grad_logits, q)
  return tuple(jnp.swapaxes(x, 1, 2) for x in (grad_q, grad_k, grad_v))


attend.defvjp(_forward, _backward)
