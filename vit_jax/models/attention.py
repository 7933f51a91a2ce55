"""Multi-head attention, and a layer that mixes attention maps across heads.

Shapes: B batch, T queries, S keys, D width, H heads, K = D / H head width.
Parameters are float32, activations have the `dtype` of their module, and the
softmax is computed in float32.
"""

from collections.abc import Callable, Sequence
import inspect
import math
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.dropout import Dropout
from vit_jax.models.initializers import normal02
from vit_jax.models.products import (
  add_parameter,
  attention_logits,
  attention_output,
  dense,
  dot_general,
  fuses_bias,
  mix_maps,
)
from vit_jax.models.softmax import softmax
from vit_jax.models.tpu_layout import (
  kernel_for_heads,
  split_batch,
  tokens_last,
)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    bias: added to the logits, broadcastable to (B, H, T, S).
    mask: bool, broadcastable to (B, H, T, S); a query attends to the keys with
      True.
    dropout: function applied to the probabilities.

  Returns:
    (B, T, H, V) and the float32 probabilities (B, H, T, S) before dropout.
  """
  q = q * (q.shape[-1] ** -0.5)
  logits = attention_logits(q, k).astype(jnp.float32)
  if bias is not None:
    logits += bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  probs = softmax(logits)
  dropped = dropout(probs) if dropout is not None else probs
  return attention_output(dropped.astype(v.dtype), v), probs


def add_biases(
  qkv: Sequence[jax.Array], biases: Sequence[jax.Array | None] | None
) -> list[jax.Array]:
  """Adds their biases to queries, keys and values.

  Args:
    qkv: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    biases: (H, K), (H, K), (H, V); None for what has no bias.

  Returns:
    The sums with the dtypes of `qkv`, laid out for attention (`tokens_last`).
  """
  add = lambda x, b: x if b is None else add_parameter(x, b.astype(x.dtype))
  if biases is not None:
    qkv = [add(x, b) for x, b in zip(qkv, biases, strict=True)]
  return [tokens_last(x) for x in qkv]


class Projection(nn.Module):
  """A layer to or from heads, and the bias that is to be added.

  Parameters `kernel` (*inputs, *outputs) and `bias` (*outputs,), initialized as
  those of `nn.DenseGeneral`.

  Attributes:
    outputs: (H, K), or (D,).
    use_bias: whether there is a bias.
    dtype: dtype of the activations.
    kernel_init, bias_init: initializers.
    before_dropout: see `products.dot_general`.
  """

  outputs: tuple[int, ...]
  use_bias: bool
  dtype: DTypeLike
  kernel_init: Initializer
  bias_init: Initializer
  before_dropout: bool = False

  @nn.compact
  def __call__(
    self, *parts: jax.Array, axes: int = 1
  ) -> tuple[list[jax.Array], jax.Array | None]:
    """Projects tokens.

    Args:
      *parts: (B, T, *inputs), one array, or several with other T. The gradient
        of the kernel is summed over all of them before it is laid out and
        before devices exchange it.
      axes: number of axes of the inputs.

    Returns:
      (B, T, *outputs) for each part, and a bias for the caller to add. It is
      None without a bias, and where the results have it; see
      `products.fuses_bias`.
    """
    inputs = parts[0].shape[-axes:]
    kernel = self._parameter('kernel', inputs)
    bias = self._parameter('bias', ()) if self.use_bias else None
    *xs, kernel = promote_dtype(*parts, kernel, dtype=self.dtype)
    if bias is not None and axes == 1 and fuses_bias(xs[0], kernel):
      return [dense(x, kernel, bias.astype(x.dtype)) for x in xs], None
    kernel = kernel_for_heads(kernel, axes)
    last = tuple(range(xs[0].ndim - axes, xs[0].ndim))
    dims = (last, tuple(range(axes))), ((), ())
    return [
      dot_general(x, kernel, dims, before_dropout=self.before_dropout)
      for x in xs
    ], bias

  def _parameter(self, name: str, inputs: tuple[int, ...]) -> jax.Array:
    """A parameter (*inputs, *outputs), initialized with one axis of each."""
    flat = tuple(math.prod(x) for x in (inputs, self.outputs) if x)
    init = self.kernel_init if inputs else self.bias_init
    return self.param(
      name,
      lambda key: init(key, flat, jnp.float32).reshape(*inputs, *self.outputs),
    )


class MultiHeadDotProductAttention(nn.Module):
  """Multi-head attention with separate query, key, value and out kernels.

  Parameters, named as in the released Google files: `{query,key,value}/kernel`
  (D, H, K) and `/bias` (H, K), `out/kernel` (H, K, D) and `out/bias` (D,).

  Attributes:
    num_heads: H.
    dropout: rate of dropout on the attention probabilities, in training.
    qkv_bias: whether query, key and value have a bias.
    out_bias: whether the output has a bias.
    dtype: dtype of the activations.
    kernel_init, bias_init: initializers of all four layers.
    attend_fn: a function like `attend`, or a Linen module called in the same
      way, which computes the outputs from queries, keys and values. Relative
      positions and area attention give another one. If it has an argument
      `biases`, it gets q, k and v without their biases, and adds them.
    head_width: K; None means D / H.
    before_dropout: whether the caller applies dropout to the result; see
      `products.dot_general`.
  """

  num_heads: int
  dropout: float = 0.0
  qkv_bias: bool = True
  dtype: DTypeLike = jnp.float32
  kernel_init: Initializer = nn.initializers.xavier_uniform()
  bias_init: Initializer = nn.initializers.zeros
  attend_fn: Callable[..., Any] = attend
  head_width: int | None = None
  before_dropout: bool = False
  out_bias: bool = True

  @nn.compact
  def __call__(
    self, x_q: jax.Array, x_kv: jax.Array, train: bool
  ) -> tuple[jax.Array, Any]:
    """Attends from x_q to x_kv.

    Args:
      x_q: (B, T, D).
      x_kv: (B, S, D).
      train: turns dropout on (rng stream 'dropout').

    Returns:
      (B, T, D), and the second result of `attend_fn`: for `attend`, the
      probabilities (B, H, T, S).

    Raises:
      ValueError: the heads do not divide the width.
    """
    x_q, x_kv = split_batch(x_q), split_batch(x_kv)
    query, key, value = self._projections(x_q.shape[-1])
    (q,), q_bias = query(x_q)
    (k,), k_bias = key(x_kv)
    (v,), v_bias = value(x_kv)
    qkv, biases = (q, k, v), None
    if q_bias is not None:
      biases = q_bias, k_bias, v_bias
    dropout, more = None, {}
    if train and self.dropout:
      dropout = Dropout(self.dropout, deterministic=False)
    if _takes_biases(self.attend_fn):
      more['biases'] = biases
    else:
      qkv = add_biases(qkv, biases)
    y, probs = self.attend_fn(*qkv, dropout=dropout, **more)
    (y,) = self._out(x_q.shape[-1], y)
    return y, probs

  def _projections(self, width: int) -> list[Projection]:
    """The layers of queries, keys and values."""
    if self.head_width is None and width % self.num_heads:
      raise ValueError(
        f'width {width} is not divisible by num_heads {self.num_heads}'
      )
    outputs = (self.num_heads, self.head_width or width // self.num_heads)
    return [
      self._projection(outputs, self.qkv_bias, name)
      for name in ('query', 'key', 'value')
    ]

  def _out(self, width: int, *ys: jax.Array) -> list[jax.Array]:
    """(B, T, D) for each (B, T, H, V)."""
    outs, bias = self._projection((width,), self.out_bias, 'out')(
      *map(tokens_last, ys), axes=2
    )
    if bias is None:
      return outs
    return [add_parameter(y, bias.astype(y.dtype)) for y in outs]

  def _projection(
    self, outputs: tuple[int, ...], use_bias: bool, name: str
  ) -> Projection:
    return Projection(
      outputs,
      use_bias,
      self.dtype,
      self.kernel_init,
      self.bias_init,
      self.before_dropout and name == 'out',
      name=name,
    )


def _takes_biases(attend_fn: Callable[..., Any]) -> bool:
  """Whether a function like `attend` adds the biases of q, k and v itself."""
  return 'biases' in inspect.signature(attend_fn).parameters


class MixHeads(nn.Module):
  """Recombines attention maps across heads by a linear map of the head axis.

  Used by talking heads (arXiv:2003.02436) and re-attention (arXiv:2103.11886).
  Parameters `kernel` (H, G) and `bias` (G,), with one output map per column.

  Attributes:
    features: G, the number of output maps.
    use_bias: whether there is a bias.
    dtype: dtype of the product.
    kernel_init, bias_init: initializers of the parameters.
  """

  features: int
  use_bias: bool = True
  dtype: DTypeLike = jnp.float32
  kernel_init: Initializer = normal02
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, maps: jax.Array, offset: float = 0.0) -> jax.Array:
    """Applies the linear map to `maps + offset`.

    The sum is not formed before the product: rounding it to bfloat16 would lose
    the small differences between maps whose entries are all close to the offset
    (the mean of a softmax, for example).

    Args:
      maps: (B, H, T, S).
      offset: a number that is added to every entry.

    Returns:
      float32 (B, G, T, S).
    """
    kernel = self.param(
      'kernel', self.kernel_init, (maps.shape[1], self.features)
    )
    maps = mix_maps(maps.astype(self.dtype), kernel.astype(self.dtype))
    maps = maps.astype(jnp.float32)
    if offset:
      maps += offset * kernel.sum(axis=0).reshape(1, -1, 1, 1)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,))
      maps += bias.reshape(1, -1, 1, 1)
    return maps
