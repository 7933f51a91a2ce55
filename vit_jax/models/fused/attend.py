"""Ordinary attention in the form that is fastest on the device at hand.

`attend` is called like `vit_jax.models.attention.attend` and gives the same
outputs and gradients up to rounding, but no probabilities. Each platform has a
file: `cpu`, `gpu`, `tpu`. Where none of its forms takes the shapes, and for
dropout on the probabilities, the plain form of `attention.attend` is used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from vit_jax.models import attention
from vit_jax.models.fused import cpu, gpu, tpu, tpu_first_token
from vit_jax.models.platform import target_platform


def attend_fn(probabilities: bool) -> Callable[..., Any]:
  """The function that computes the attention of a block.

  Args:
    probabilities: whether the block returns the probabilities, which only
      `attention.attend` computes.
  """
  return attention.attend if probabilities else attend


def attention_module(
  x: jax.Array, heads: int
) -> type[attention.MultiHeadDotProductAttention]:
  """The module of attention among tokens, without dropout on probabilities.

  Args:
    x: the tokens (B, T, D), in the dtype of the activations.
    heads: H.
  """
  if tpu_first_token.fits(x, heads):
    return tpu_first_token.FirstTokenApart
  return attention.MultiHeadDotProductAttention


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
  biases: Sequence[jax.Array] | None = None,
) -> tuple[jax.Array, None]:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    dropout: function applied to the probabilities.
    biases: of queries, keys and values, which are added to q, k and v: (H, K),
      (H, K) and (H, V). The kernel for TPUs computes their gradients.

  Returns:
    (B, T, H, V), and None in the place of the probabilities.
  """
  platform = target_platform()
  if dropout is None and platform == 'tpu' and tpu.fits(q, k, v):
    return tpu.attend(q, k, v, biases), None
  q, k, v = attention.add_biases((q, k, v), biases)
  if dropout is None and platform == 'cpu':
    return cpu.attend(q, k, v), None
  if dropout is None and platform == 'gpu':
    return gpu.attend(q, k, v), None
  return attention.attend(q, k, v, dropout=dropout)[0], None
