"""Matrix products by oneDNN, on one CPU; `onednn` says where they are used.

They have the derivatives of `jnp.matmul`, in both modes and of any order, and
work under `jax.vmap`.
"""

import functools
from typing import Any, cast

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from vit_jax.models import onednn

_product_p = Primitive('onednn_product')


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


def is_product(
  primitive: Any, *operands: Any, batched: bool = True, **settings: Any
) -> bool:
  """A policy of `jax.checkpoint`: keeps the results of `product`.

  Args:
    primitive, *operands, **settings: the operation and the shapes it takes.
    batched: whether products of more than two matrices are kept too.
  """
  del settings
  return primitive is _product_p and (batched or operands[0].ndim == 2)


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


def _lower_product(ctx, a, b, **settings):
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
