"""Parts that several papers share: attention, MLP, drop path, block stacks.

Shapes: B batch, T tokens, D width, H heads, K = D / H head width. Parameters
are float32; activations take the `dtype` of a module; softmax and norm
statistics are float32.
"""

from collections.abc import Callable, Sequence
import contextlib
import contextvars
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

GELU = {
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'gelu_erf': functools.partial(nn.gelu, approximate=False),
}

# Initialisers of PyTorch code (timm): Linear weights are N(0, 0.02), because
# torch's trunc_normal_ cuts at +-2 absolute; convolutions keep torch's own
# default, uniform in +-1/sqrt(fan_in), for weight and bias.
normal02 = nn.initializers.normal(0.02)
torch_conv_kernel = nn.initializers.variance_scaling(
    1 / 3, 'fan_in', 'uniform')


def torch_conv_bias(fan_in: int):
  """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of PyTorch's biases."""
  bound = fan_in ** -0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)


_PORTABLE = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable():
  """Within it, models are traced without kernels for one kind of device.

  For programs that are lowered for several platforms at once (`jax.export`).
  """
  token = _PORTABLE.set(True)
  try:
    yield
  finally:
    _PORTABLE.reset(token)


def is_portable() -> bool:
  return _PORTABLE.get()


def split_batch(x: jax.Array) -> jax.Array:
  """Splits the batch axis of an activation along the mesh axes for data.

  Left alone, the partitioner may follow sharded weights and replicate the
  batch (hundreds of GiB for FSDP). It holds for the gradient as well. Without
  a mesh (`jax.set_mesh`) with these axes it is the identity, so models need to
  know nothing of training.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  if not axes or x.shape[0] % math.prod(mesh.shape[a] for a in axes):
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))


def pin(x: jax.Array) -> jax.Array:
  """`split_batch`, and on a TPU its axes in order: the state between blocks."""
  return lay_out(split_batch(x), range(x.ndim))


def lay_out(x: jax.Array, order) -> jax.Array:
  """Fixes the memory order of an activation's axes on a TPU, major first.

  Left alone with 128 images a core, the compiler keeps the batch innermost
  between blocks and the tokens innermost within attention, and copies q, k, v,
  the output and their gradients to and fro: a fifth of a block of S/16. Off
  a TPU mesh it is the identity.
  """
  if not _for_tpu():
    return x
  return with_layout_constraint(x, Layout(major_to_minor=tuple(order)))


def _for_tpu() -> bool:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.platform == 'tpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_gradient(x, change: Callable):
  """x, whose gradient is `change(gradient)`."""
  return x


_with_gradient.defvjp(
    lambda x, change: (x, None), lambda change, _, g: (change(g),))


def product(x, kernel, dims, precision=None, *, before_dropout: bool = False,
            **kwargs):
  """`lax.dot_general` for Dense layers; on a TPU, says how gradients lie.

  The gradient of a kernel with heads, (D, H, K) or (H, K, D), is written with
  D innermost: left alone, K is, and a head width of 64 fills half of the
  lanes (L/16: 0.58 ms instead of 0.30). Before a dropout, the gradient of the
  product is kept in memory: left alone, the mask is computed again in each
  product of the backward pass (0.3 ms more in the MLP). The bias is not yet
  in the product, so that its gradient is summed where the mask is computed.
  """
  if not _for_tpu():
    return jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if kernel.ndim == 3:
    order = (1, 2, 0) if len(dims[0][1]) == 1 else (0, 1, 2)
    kernel = _with_gradient(kernel, functools.partial(lay_out, order=order))
  y = jax.lax.dot_general(x, kernel, dims, precision, **kwargs)
  if before_dropout:
    y = _with_gradient(y, jax.lax.optimization_barrier)
  return y


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
          f'width {width} is not divisible by num_heads {self.num_heads}')
    head_width = self.head_width or width // self.num_heads
    project = functools.partial(
        nn.DenseGeneral, features=(self.num_heads, head_width),
        use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=self.kernel_init,
        bias_init=self.bias_init, dot_general=product)
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
        width, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init,
        bias_init=self.bias_init, dot_general=functools.partial(
            product, before_dropout=self.before_dropout),
        name='out')(tokens_last(y))
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
    kernel = self.param('kernel', self.kernel_init,
                        (maps.shape[1], self.features))
    maps = jnp.einsum('bhts,hg->bgts', maps.astype(self.dtype),
                      kernel.astype(self.dtype)).astype(jnp.float32)
    if offset:
      maps += offset * kernel.sum(axis=0).reshape(1, -1, 1, 1)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,))
      maps += bias.reshape(1, -1, 1, 1)
    return maps


class MlpBlock(nn.Module):
  """Dense -> GELU -> Dense (`Dense_0`, `Dense_1`), dropout after each."""

  mlp_dim: int
  dropout: float = 0.0
  activation: str = 'gelu_tanh'  # key of GELU
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.normal(1e-6)
  bias_init_out: Callable | None = None  # of Dense_1; None: as bias_init

  @nn.compact
  def __call__(self, x, train: bool):
    """(..., D) -> (..., D)."""
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
    y = dense(self.mlp_dim, bias_init=self.bias_init)(x)
    y = GELU[self.activation](y)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = dense(
        x.shape[-1], bias_init=self.bias_init_out or self.bias_init,
        dot_general=functools.partial(
            product, before_dropout=train and self.dropout > 0))(y)
    return Dropout(self.dropout, deterministic=not train)(y)


def keep_mask(key: jax.Array, keep: float, shape) -> jax.Array:
  """Bernoulli(keep) booleans of a shape, by a hash of key and position.

  A threefry mask costs as much as the rest of a block on a TPU: 20 rounds for
  each number. Here a position is spread over 32 bits by the golden ratio, and
  mixed with the key by two multiply-xorshift rounds (constants found by search:
  https://github.com/skeeto/hash-prospector), which a TPU hides in part behind
  the memory traffic. Without the spreading, positions some rows apart are
  correlated (by 4 %). Only the leading bits count in the comparison, so the
  last xorshift is left out. As with partitionable threefry, a number depends
  on its global position alone, not on how the array is split.
  """
  data = jax.random.key_data(key).astype(jnp.uint32)
  x, stride = data[0], 0x9E3779B9
  for axis in reversed(range(len(shape))):
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = x + index * np.uint32(stride % 2 ** 32)
    stride *= shape[axis]
  x = x ^ data[-1]
  x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
  return x < np.uint32(min(2 ** 32 - 1, round(keep * 2 ** 32)))


class Dropout(nn.Module):
  """Zeroes entries with probability `rate`, divides the others by 1 - rate.

  As nn.Dropout, with the masks of `keep_mask`.
  """

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x):
    """Any shape."""
    if not 0 <= self.rate < 1:
      raise ValueError(f'dropout={self.rate} must be at least 0 and below 1')
    if self.deterministic or self.rate == 0:
      return x
    keep = 1.0 - self.rate
    mask = keep_mask(self.make_rng('dropout'), keep, x.shape)
    scaled = x.astype(jnp.float32) * (1 / keep)
    return jnp.where(mask, scaled, 0.0).astype(x.dtype)


class DropPath(nn.Module):
  """Stochastic depth (arXiv:1603.09382): drops a residual branch per example.

  The kept branches are divided by the keep probability unless `rescale` is
  False (big_vision's Mixer). `rate` is an argument, not a field, so that
  scanned blocks can each have their own.
  """

  rescale: bool = True

  @nn.compact
  def __call__(self, x, rate, train: bool):
    if not train or (isinstance(rate, (int, float)) and rate == 0):
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    scale = mask / keep if self.rescale else mask
    return x * scale.astype(x.dtype)


def drop_path_rates(rate: float, depth: int) -> list[float]:
  """Linear schedule: 0 at the first block, `rate` at the last."""
  return [rate * i / max(1, depth - 1) for i in range(depth)]


REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.checkpoint_dots,
    'dots_no_batch':
        jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def run_blocks(block: Callable[..., nn.Module], x, rates: Sequence[float],
               train: bool, *, name: str, remat: str = 'none',
               scan: bool = False, first: int = 0, extra: tuple = ()):
  """Applies a stack of blocks; called inside a compact `__call__`.

  Args:
    block: a partial of a Module class whose `__call__(x, rate, train)`
      returns (x, aux); `rate` is its drop-path rate.
    x: (B, ..., D).
    rates: drop-path rate per block; their number is the depth.
    train: static.
    name: blocks are named `{name}_{i}`; a scanned stack `{name}`.
    remat: a key of REMAT; what the backward pass may recompute.
    scan: one compiled block, parameters stacked along a leading axis.
    first: index of the first block in the unrolled names.
    extra: further arguments of every block, after `train`.

  Returns:
    x and the list of the blocks' aux trees.
  """
  if remat not in REMAT:
    raise ValueError(f'remat={remat!r}; allowed: {", ".join(REMAT)}')
  cls, fields = block.func, block.keywords
  if remat != 'none':
    # Static arguments are counted with self: (self, x, rate, train).
    cls = nn.remat(cls, policy=REMAT[remat], prevent_cse=not scan,
                   static_argnums=(3,) if scan else (2, 3))
  if not scan:
    auxes = []
    for i, rate in enumerate(rates, start=first):
      x, aux = cls(**fields, name=f'{name}_{i}')(x, float(rate), train, *extra)
      x = pin(x)
      auxes.append(aux)
    return x, auxes
  per_layer = any(rates)  # else a constant zero, and no drop path is compiled
  scanned = nn.scan(
      cls, variable_axes={'params': 0, 'batch_stats': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0 if per_layer else nn.broadcast, nn.broadcast)
      + (nn.broadcast,) * len(extra),
      length=len(rates))
  rate = jnp.asarray(rates, jnp.float32) if per_layer else 0.0
  x, auxes = scanned(**fields, name=name)(x, rate, train, *extra)
  return pin(x), [jax.tree.map(lambda a, i=i: a[i], auxes)
                  for i in range(len(rates))]


def conv_patches(features: int, patch_size, **kwargs) -> nn.Conv:
  """A patch embedding: convolution with stride = kernel, VALID."""
  size = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
  return nn.Conv(features, size, strides=size, padding='VALID', **kwargs)


def check_patches(height: int, width: int, patch_size) -> None:
  """ValueError if not even one patch fits into an image."""
  ph, pw = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
  if height < ph or width < pw:
    raise ValueError(
        f'patch_size {ph}x{pw} is larger than the image or feature map '
        f'{height}x{width}: use a larger image_size or a smaller patch_size')
