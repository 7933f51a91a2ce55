"""Attention on TPUs whose first token is computed apart.

A TPU stores tokens in tiles of 128. With the class token, 256 patches are 257
tokens, which fill three tiles as 384 would. So here the patches go through the
kernel of `tpu` by themselves, in two tiles. The class token is one more key for
them, which is added to their softmax afterwards, and its own query takes the
plain form.

With the logarithm n of a query's sum over the patches and the logit c of the
class token, the logarithm of the whole sum is log(exp(n) + exp(c)), and the
class token has the probability exp(c) divided by the whole sum. The kernel's
backward pass computes probabilities from that logarithm, so given the one of
the whole sum and the whole output, its gradients are those of all tokens
together.

B batch, T patches, H heads, K and V head widths.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import attention, tpu_layout
from vit_jax.models.fused import tpu
from vit_jax.models.platform import target_platform


def fits(x: jax.Array, heads: int) -> bool:
  """Whether attention is faster with the first token apart.

  Args:
    x: the tokens (B, 1 + T, D), in the dtype of the activations.
    heads: H.
  """
  if target_platform() != 'tpu' or not isinstance(x.shape[0], int):
    return False

  def takes(tokens):
    shape = (x.shape[0], tokens, heads, x.shape[2] // heads)
    operand: Any = jax.ShapeDtypeStruct(shape, x.dtype)
    return tokens > 1 and tpu.fits(operand, operand, operand)

  return takes(x.shape[1] - 1) and not takes(x.shape[1])


class FirstTokenApart(attention.MultiHeadDotProductAttention):
  """Attention among tokens of which the first is computed apart.

  The parameters and the numbers are those of the base class; `attend_fn` and
  `dropout` are not used.
  """

  @nn.compact
  def __call__(
    self, x_q: jax.Array, x_kv: jax.Array, train: bool
  ) -> tuple[jax.Array, None]:
    """Attends among the tokens (B, 1 + T, D), which are both arguments."""
    del x_q, train
    x = tpu_layout.split_batch(x_kv)
    projected = [
      layer(x[:, :1], x[:, 1:]) for layer in self._projections(x.shape[-1])
    ]
    qkv, biases = zip(*projected, strict=True)
    first, others = (
      attention.add_biases(part, biases) for part in zip(*qkv, strict=True)
    )
    ys = self._out(x.shape[-1], *attend(first, others))
    return jnp.concatenate(ys, axis=1), None


def attend(
  first: list[jax.Array], others: list[jax.Array], interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    first: q, k and v of the first token, (B, 1, H, K), K, V.
    others: q, k and v of the other tokens, (B, T, H, K), K, V.
    interpret: runs the kernel without a TPU, which is slow.

  Returns:
    The outputs of the first token (B, 1, H, V), and of the others.
  """
  q, k, v = first
  return (
    _attend_first(q, k, v, *others[1:]),
    _attend_others(*others, k, v, interpret),
  )


def _attend_first(q, first_k, first_v, k, v):
  """The output of the first token's query."""
  scale = q.shape[-1] ** -0.5
  exact = lambda x: x.astype(jnp.float32)
  own = (exact(q) * exact(first_k)).sum(-1)[:, 0, :, None] * scale  # (B, H, 1)
  logits = jnp.einsum(
    'bhk,bthk->bht', q[:, 0], k, preferred_element_type=jnp.float32
  )
  logits *= scale
  probs = jax.nn.softmax(jnp.concatenate([own, logits], -1)).astype(v.dtype)
  y = jnp.einsum('bht,bthv->bhv', probs[..., 1:], v)
  return (y + probs[..., :1] * first_v[:, 0])[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_others(q, k, v, first_k, first_v, interpret):
  """The outputs of the other tokens' queries."""
  return _forward(q, k, v, first_k, first_v, interpret)[0]


def _forward(q, k, v, first_k, first_v, interpret):
  y, normalizer = tpu.forward(q, k, v, interpret)
  logits = _first_logits(q, first_k)
  total = jnp.logaddexp(normalizer, logits)
  y = y * _for_values(jnp.exp(normalizer - total))
  y = (y + _for_values(jnp.exp(logits - total)) * first_v).astype(v.dtype)
  return y, (q, k, v, y, total, first_k, first_v)


def _backward(interpret, kept, g):
  q, k, v, y, total, first_k, first_v = kept
  grads = tpu.backward(q, k, v, y, total, g, interpret=interpret)
  probs = jnp.exp(_first_logits(q, first_k) - total)  # (B, H, T)
  exact = g.astype(jnp.float32)
  change = (exact * (first_v.astype(jnp.float32) - y)).sum(-1)  # (B, T, H)
  logit_grads = probs * jnp.swapaxes(change, 1, 2) * q.shape[-1] ** -0.5
  grad_q = grads[0] + _for_values(logit_grads) * first_k
  grad_first_k = (_for_values(logit_grads) * q).sum(1, keepdims=True)
  grad_first_v = (_for_values(probs) * exact).sum(1, keepdims=True)
  return (
    grad_q.astype(q.dtype),
    *grads[1:],
    grad_first_k.astype(k.dtype),
    grad_first_v.astype(v.dtype),
  )


_attend_others.defvjp(_forward, _backward)


def _first_logits(q, first_k):
  """The logits (B, H, T) of the first token's key."""
  products = q.astype(jnp.float32) * first_k
  return jnp.swapaxes(products.sum(-1), 1, 2) * q.shape[-1] ** -0.5


def _for_values(x: jax.Array) -> jax.Array:
  """(B, H, T) as (B, T, H, 1)."""
  return jnp.swapaxes(x, 1, 2)[..., None]
