"""Matrix products by oneDNN, on one CPU; `onednn` says where they are used.

`product` multiplies matrices; `dense` adds a bias, and applies an activation,
while it writes the product, which saves a pass over it. Both have derivatives
in both modes and of any order, and work under `jax.vmap`.
"""

from collections.abc import Callable
import functools
from typing import Any, cast

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from vit_jax.models import onednn
from vit_jax.models.activations import activate
from vit_jax.models.fusion import stored

_product_p = Primitive('onednn_product')
_dense_p = Primitive('onednn_dense')
# What oneDNN computes after the product, by the keys of `activations.GELU`.
_FUSED = {'gelu_tanh': 'GELU_TANH', 'gelu_erf': 'GELU_ERF'}


def product(
  a: jax.Array,
  b: jax.Array,
  *,
  transpose_a: bool = False,
  transpose_b: bool = False,
  dtype: Any = None,
) -> jax.Array:
  """The products of matrices, which are the last two axes.

  Args:
    a: (..., M, K), or with `transpose_a` (..., K, M); float32 or bfloat16.
    b: (..., K, N), or with `transpose_b` (..., N, K); of the same dtype, with
      the same leading axes.
    transpose_a, transpose_b: whether the last two axes are exchanged.
    dtype: dtype of the result; None means that of a. Sums are computed in
      float32.

  Returns:
    (..., M, N).
  """
  *lead, m, n = _product_shape(a.shape, b.shape, transpose_a, transpose_b)
  if a.ndim != 3 and a.ndim != 2:
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
  y = _bind_product(
    a,
    b,
    transpose_a=transpose_a,
    transpose_b=transpose_b,
    dtype=jnp.dtype(dtype or a.dtype),
  )
  return y.reshape(*lead, m, n)


def dense(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  activation: str | None,
) -> jax.Array:
  """A product with a bias, and an activation.

  A derivative needs the sum before the activation. So in a program with
  gradients, the activation is a pass of its own.

  Args:
    x, kernel, bias: (N, I), (I, O), (O,) of one dtype, float32 or bfloat16.
    activation: key of `activations.GELU`; None for none.

  Returns:
    (N, O).
  """
  if activation in _FUSED:
    return _bind_dense(x, kernel, bias, activation=activation)
  return activate(_bind_dense(x, kernel, bias, activation=None), activation)


def is_product(
  primitive: Any, *operands: Any, batched: bool = True, **settings: Any
) -> bool:
  """A policy of `jax.checkpoint`: keeps the results of products.

  Args:
    primitive, *operands, **settings: the operation and the shapes it takes.
    batched: whether products of more than two matrices are kept too.
  """
  del settings
  return primitive in (_product_p, _dense_p) and (
    batched or operands[0].ndim == 2
  )


def _product_shape(a, b, transpose_a, transpose_b):
  rows = a[-1] if transpose_a else a[-2]
  columns = b[-2] if transpose_b else b[-1]
  return (*a[:-2], rows, columns)


# `jit` lets the primitive be called outside of a compiled function too.
@functools.partial(
  jax.jit, static_argnames=('transpose_a', 'transpose_b', 'dtype'), inline=True
)
def _bind_product(a, b, **settings):
  return cast(jax.Array, _product_p.bind(a, b, **settings))


def _left_gradient(g, a, b, *, transpose_a, transpose_b, dtype):
  """The gradient of the left operand, which is no array here."""
  del a, dtype
  g = g.astype(b.dtype)
  if transpose_a:
    return product(b, g, transpose_a=transpose_b, transpose_b=True)
  return product(g, b, transpose_b=not transpose_b)


def _right_gradient(g, a, b, *, transpose_a, transpose_b, dtype):
  """The gradient of the right operand, which is no array here."""
  del b, dtype
  g = g.astype(a.dtype)
  if transpose_b:
    return product(g, a, transpose_a=True, transpose_b=transpose_a)
  return product(a, g, transpose_a=not transpose_a)


ad.defbilinear(_product_p, _left_gradient, _right_gradient)


def _plain_product(a, b, *, transpose_a, transpose_b, dtype):
  a = jnp.swapaxes(a, -1, -2) if transpose_a else a
  b = jnp.swapaxes(b, -1, -2) if transpose_b else b
  return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(dtype)


_product_p.def_impl(_plain_product)  # only for `jax.disable_jit`


@_product_p.def_abstract_eval
def _(a, b, *, transpose_a, transpose_b, dtype):
  shape = _product_shape(a.shape, b.shape, transpose_a, transpose_b)
  return core.ShapedArray(shape, dtype)


# From so many tokens on, transposing an operand takes less time than it saves.
_MANY_TOKENS = 1024


def _is_read_slowly(b: Any) -> bool:
  """Whether oneDNN reads a right operand slowly.

  It does where the rows begin at multiples of 2 KiB, because the elements of a
  column then share a few sets of the cache. If N is a power of two, oneDNN
  copies the operand into another order first, and small operands seem to stay
  in the cache.

  In float32, a product with 768 x 3072 has half of the speed of one with its
  transpose; 768 x 2048 and 384 x 1536 have the same speed both ways, and so has
  768 x 3072 in bfloat16 (measured: oneDNN of jaxlib 0.10, AVX-512).

  Args:
    b: shape (K, N) and type of the operand.
  """
  k, n = b.shape
  power_of_two = n & (n - 1) == 0
  return (
    b.dtype == jnp.float32
    and n % 512 == 0
    and not power_of_two
    and k * n > 2**20
  )


def _faster_product(
  a: Any, b: Any, *, transpose_a: bool, transpose_b: bool, dtype: Any
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """A faster form of a product whose right operand is read slowly.

  Args:
    a, b: shapes and types of the operands of `product`.
    transpose_a, transpose_b, dtype: its settings.

  Returns:
    A function of the two operands, which computes the same product; None if the
    right operand is not read slowly.
  """
  if transpose_b or b.ndim != 2 or not _is_read_slowly(b):
    return None
  m, k = a.shape[::-1] if transpose_a else a.shape
  if max(m, k) < _MANY_TOKENS:
    return functools.partial(
      _plain_product, transpose_a=transpose_a, transpose_b=False, dtype=dtype
    )
  if m < k and not (transpose_a and _is_read_slowly(a)):
    # The result is smaller than b, so the result is transposed. The gradient of
    # a kernel is such a product. It is stored, because the optimizer uses it in
    # several passes, and would transpose it in each of them.
    return lambda a, b: stored(
      product(
        b, a, transpose_a=True, transpose_b=not transpose_a, dtype=dtype
      ).T
    )
  return lambda a, b: product(
    a, b.T, transpose_a=transpose_a, transpose_b=True, dtype=dtype
  )


def _lower_product(ctx, a, b, **settings):
  faster = _faster_product(*ctx.avals_in, **settings)
  if faster is not None:
    return mlir.lower_fun(faster, multiple_results=False)(ctx, a, b)
  config = {k: settings[k] for k in ('transpose_a', 'transpose_b')}
  return onednn.lower_call(
    ctx,
    '__onednn$matmul',
    {'onednn_matmul_config': config},
    functools.partial(_plain_product, **settings),
    a,
    b,
  )


mlir.register_lowering(_product_p, _lower_product, platform='cpu')


def _batch_product(args, axes, **settings):
  """`vmap`: both operands get the new axis in front."""
  (size,) = {
    x.shape[i] for x, i in zip(args, axes, strict=True) if i is not None
  }
  a, b = (
    jnp.broadcast_to(x, (size, *x.shape))
    if i is None
    else jnp.moveaxis(x, i, 0)
    for x, i in zip(args, axes, strict=True)
  )
  return product(a, b, **settings), 0


batching.primitive_batchers[_product_p] = _batch_product


@functools.partial(jax.jit, static_argnames='activation', inline=True)
def _bind_dense(x, kernel, bias, *, activation):
  # oneDNN takes a bias with as many axes as the product.
  bias = bias[None]
  return cast(jax.Array, _dense_p.bind(x, kernel, bias, activation=activation))


def _plain_dense(x, kernel, bias, *, activation):
  y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias
  return activate(y.astype(x.dtype), activation)


_dense_p.def_impl(_plain_dense)  # only for `jax.disable_jit`


@_dense_p.def_abstract_eval
def _(x, kernel, bias, *, activation):
  del bias, activation
  return core.ShapedArray((x.shape[0], kernel.shape[1]), x.dtype)


def _dense_derivative(primals, tangents, *, activation):
  x, kernel, _ = primals
  y = _dense_p.bind(*primals, activation=None)
  x_dot, kernel_dot, bias_dot = tangents
  # Zero stands for an operand that does not change.
  terms = []
  if not isinstance(x_dot, ad.Zero):
    terms.append(product(x_dot, kernel))
  if not isinstance(kernel_dot, ad.Zero):
    terms.append(product(x, kernel_dot))
  if not isinstance(bias_dot, ad.Zero):
    # In float32, because its transpose is a sum, which the compiler computes
    # twenty times as slowly in bfloat16.
    wide = jnp.promote_types(bias_dot.dtype, jnp.float32)
    terms.append(
      jnp.broadcast_to(bias_dot.astype(wide), y.shape).astype(y.dtype)
    )
  y_dot = functools.reduce(jnp.add, terms)
  return jax.jvp(lambda y: activate(y, activation), (y,), (y_dot,))


ad.primitive_jvps[_dense_p] = _dense_derivative


def _lower_dense(ctx, x, kernel, bias, *, activation):
  plain = functools.partial(_plain_dense, activation=activation)
  tokens, shape = ctx.avals_in[0].shape[0], ctx.avals_in[1]
  slow = _is_read_slowly(shape)
  if slow and tokens < _MANY_TOKENS:
    return mlir.lower_fun(plain, multiple_results=False)(ctx, x, kernel, bias)
  if slow:
    transpose = mlir.lower_fun(jnp.transpose, multiple_results=False)
    transposed = shape.update(shape=shape.shape[::-1])
    (kernel,) = transpose(
      ctx.replace(avals_in=[shape], avals_out=[transposed]), kernel
    )
    ctx = ctx.replace(avals_in=[ctx.avals_in[0], transposed, ctx.avals_in[2]])
    plain = lambda x, kernel, bias: _plain_dense(
      x, kernel.T, bias, activation=activation
    )
  operations = ['BIAS'] + ([_FUSED[activation]] if activation else [])
  return onednn.lower_call(
    ctx,
    '__onednn$matmul',
    {
      'onednn_matmul_config': {
        'transpose_b': slow,
        'fusions': {'ops': operations},
      }
    },
    plain,
    x,
    kernel,
    bias,
  )


mlir.register_lowering(_dense_p, _lower_dense, platform='cpu')


def _batch_dense(args, axes, *, activation):
  """`vmap`: a batched product, and the rest by the compiler."""

  def one(x, kernel, bias):
    return activate(product(x, kernel) + bias, activation)

  return jax.vmap(one, in_axes=axes)(*args), 0


batching.primitive_batchers[_dense_p] = _batch_dense
