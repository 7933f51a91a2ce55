"""Parts that several papers share: attention, MLP, drop path, block stacks.

Shapes: B batch, T tokens, D width, H heads, K = D / H head width. Parameters
are float32; activations take the `dtype` of a module; softmax and norm
statistics are float32.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.dropout import Dropout
from vit_jax.models.tpu_layout import (
  _with_gradient,
  lay_out,
  product,
  split_batch,
)

# Initialisers of PyTorch code (timm): Linear weights are N(0, 0.02), because
# torch's trunc_normal_ cuts at +-2 absolute; convolutions keep torch's own
# default, uniform in +-1/sqrt(fan_in), for weight and bias.
normal02 = nn.initializers.normal(0.02)


_with_gradient.defvjp(
  lambda x, change: (x, None), lambda change, _, g: (change(g),)
)


def attend(q, k, v, *, bias=None, mask=None, dropout: Callable | None = None):
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    bias: added to the logits, broadcastable to (B, H, T, S).
    mask: bool, broadcastable to (B, H, T, S); False is not attended.
    dropout: function applied to the probabilities.

  Returns:
    (B, T, H, V) and the float32 probabilities (B, H, T, S) before dropout.
  """
  q = q * (q.shape[-1] ** -0.5)
  logits = jnp.einsum('bthk,bshk->bhts', q, k).astype(jnp.float32)
  if bias is not None:
    logits += bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  probs = jax.nn.softmax(logits)
  dropped = dropout(probs) if dropout is not None else probs
  return jnp.einsum('bhts,bshv->bthv', dropped.astype(v.dtype), v), probs


class MultiHeadDotProductAttention(nn.Module):
  """Multi-head attention with separate query, key, value and out kernels.

  Parameters `{query,key,value}/kernel` (D, H, K), `bias` (H, K) and
  `out/kernel` (H, K, D), `bias` (D), as in the released Google files. The
  rule that mixes values, `attend_fn`, can be replaced (relative positions,
  areas): it has the signature of `attend`.
  """

  num_heads: int
  dropout: float = 0.0
  qkv_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.zeros
  attend_fn: Callable = attend
  head_width: int | None = None  # K; None: D / H
  before_dropout: bool = False  # the output goes into a dropout: see product

  @nn.compact
  def __call__(self, x_q, x_kv, train: bool):
    """(B, T, D), (B, S, D) -> (B, T, D), probabilities (B, H, T, S)."""
    width = x_q.shape[-1]
    if self.head_width is None and width % self.num_heads:
      raise ValueError(
        f'width {width} is not divisible by num_heads {self.num_heads}'
      )
    head_width = self.head_width or width // self.num_heads
    project = functools.partial(
      nn.DenseGeneral,
      features=(self.num_heads, head_width),
      use_bias=self.qkv_bias,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dot_general=product,
    )
    # Tokens last, as the products over tokens want them; but a single query
    # (a class token) would fill one lane of 128.
    tokens_last = lambda x: lay_out(x, (0, 2, 3, 1)) if x.shape[1] > 1 else x
    x_q, x_kv = split_batch(x_q), split_batch(x_kv)
    q = tokens_last(project(name='query')(x_q))
    k = tokens_last(project(name='key')(x_kv))
    v = tokens_last(project(name='value')(x_kv))
    dropout = None
    if train and self.dropout:
      dropout = Dropout(self.dropout, deterministic=False)
    y, probs = self.attend_fn(q, k, v, dropout=dropout)
    y = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dot_general=functools.partial(
        product, before_dropout=self.before_dropout
      ),
      name='out',
    )(tokens_last(y))
    return y, probs


class MixHeads(nn.Module):
  """Recombines attention maps across heads: one linear map over the head axis.

  Talking heads (arXiv:2003.02436) and re-attention (arXiv:2103.11886).
  Parameters `kernel` (H, G) and `bias` (G,), one output map per column.
  """

  features: int
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = normal02
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, maps, offset: float = 0.0):
    """Maps plus offset, (B, H, T, S), to (B, G, T, S), float32.

    An offset (a softmax's mean, say) is not rounded to `dtype`, and the maps
    without it lose less by rounding.
    """
    kernel = self.param(
      'kernel', self.kernel_init, (maps.shape[1], self.features)
    )
    maps = jnp.einsum(
      'bhts,hg->bgts', maps.astype(self.dtype), kernel.astype(self.dtype)
    ).astype(jnp.float32)
    if offset:
      maps += offset * kernel.sum(axis=0).reshape(1, -1, 1, 1)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,))
      maps += bias.reshape(1, -1, 1, 1)
    return maps
