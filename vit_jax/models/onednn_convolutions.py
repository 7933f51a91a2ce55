"""Convolutions by oneDNN, on one CPU; `onednn` says where they are used.

They have the derivatives of `lax.conv_general_dilated`, in both modes and of
any order, and work under `jax.vmap`.
"""

from collections.abc import Sequence
import functools
from typing import Any, cast

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from vit_jax.models import onednn
from vit_jax.models.fusion import moved
from vit_jax.models.onednn_products import product

_Pairs = tuple[tuple[int, int], ...]
_convolution_p = Primitive('onednn_convolution')


def takes_convolution(kernel_size: Sequence[int], padding: _Pairs) -> bool:
  """Whether `convolution` can compute it, with its gradients.

  Args:
    kernel_size: (height, width).
    padding: ((top, bottom), (left, right)).
  """
  pairs = zip(padding, kernel_size, strict=True)
  return all(0 <= n < size for around, size in pairs for n in around)


def convolution(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: _Pairs
) -> jax.Array:
  """A convolution without groups and dilation.

  Args:
    x: (B, H, W, C), float32 or bfloat16.
    kernel: (height, width, C, D), of the same dtype.
    strides: (vertical, horizontal).
    padding: ((top, bottom), (left, right)), with which `takes_convolution`.

  Returns:
    (B, H', W', D).
  """
  return _bind_convolution(x, kernel, strides=strides, padding=padding)


@functools.partial(jax.jit, static_argnames=('strides', 'padding'), inline=True)
def _bind_convolution(x, kernel, **settings):
  return cast(jax.Array, _convolution_p.bind(x, kernel, **settings))


def _image_gradient(g, x, kernel, *, strides, padding):
  """The gradient of x, which is no array here.

  It is a convolution of g, spread out by the strides, with the kernel turned by
  half a turn.
  """
  sizes = kernel.shape[:2]
  spread = [(0, 0, stride - 1) for stride in strides]
  g = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
  turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
  around = []
  for i, (before, _) in enumerate(padding):
    after = x.aval.shape[1 + i] - g.shape[1 + i] + before
    around.append((sizes[i] - 1 - before, after))
  return convolution(g, turned, (1, 1), tuple(around))


def _kernel_gradient(g, x, kernel, *, strides, padding):
  """The gradient of the kernel, which is no array here.

  It is a sum over all positions: one product for each row of the kernel.
  """
  sizes = kernel.aval.shape[:2]
  rows, columns = g.shape[1:3]
  channels, features = x.shape[-1], g.shape[-1]
  g = g.reshape(-1, features)

  def inputs(row, x):
    """What one row of the kernel sees: (positions, columns * channels)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    below, right = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
    x = x[:, row : row + below : strides[0]]
    shifted = [x[:, :, c : c + right : strides[1]] for c in range(sizes[1])]
    return jnp.concatenate(shifted, -1).reshape(-1, sizes[1] * channels)

  def of_row(row):
    y = moved(functools.partial(inputs, row), x)
    y = product(y, g, transpose_a=True)
    return y.reshape(sizes[1], channels, features)

  return jnp.stack([of_row(row) for row in range(sizes[0])])


ad.defbilinear(_convolution_p, _image_gradient, _kernel_gradient)


def _plain_convolution(x, kernel, *, strides, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


_convolution_p.def_impl(_plain_convolution)  # only for `jax.disable_jit`


@_convolution_p.def_abstract_eval
def _(x, kernel, **settings):
  out = jax.eval_shape(
    functools.partial(_plain_convolution, **settings),
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
  )
  return core.ShapedArray(out.shape, out.dtype)


def _lower_convolution(ctx, x, kernel, *, strides, padding):
  # The compiler reads 64-bit numbers, which JSON has as texts.
  numbers = lambda *values: [str(n) for n in values]
  images = {
    'dims': 4,
    'data': {
      'batch_dim': '0',
      'feature_dim': '3',
      'spatial_dims': numbers(1, 2),
    },
  }
  filters = {
    'input_feature_dim': '2',
    'output_feature_dim': '3',
    'spatial_dims': numbers(0, 1),
  }
  config = {
    'dims': 4,
    'input': images,
    'kernel': {'dims': 4, 'filter': filters},
    'output': images,
    'window': {
      'size': numbers(*ctx.avals_in[1].shape[:2]),
      'pad_left': numbers(*(before for before, _ in padding)),
      'pad_right': numbers(*(after for _, after in padding)),
      'strides': numbers(*strides),
      'window_dilations': numbers(1, 1),
    },
    'feature_groups': '1',
  }
  return onednn.lower_call(
    ctx,
    '__onednn$convolution',
    {'onednn_conv_config': config},
    functools.partial(_plain_convolution, strides=strides, padding=padding),
    x,
    kernel,
  )


mlir.register_lowering(_convolution_p, _lower_convolution, platform='cpu')


def _batch_convolution(args, axes, strides, padding):
  """`vmap` over images: the new axis joins the batch. Over kernels: a loop."""
  x, kernel = args
  run = lambda x, kernel: convolution(x, kernel, strides, padding)
  if axes[1] is None:
    x = jnp.moveaxis(x, axes[0], 0)
    y: Any = run(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0
  kernel = jnp.moveaxis(kernel, axes[1], 0)
  xs = (
    [x] * len(kernel) if axes[0] is None else list(jnp.moveaxis(x, axes[0], 0))
  )
  return jnp.stack([run(x, k) for x, k in zip(xs, kernel, strict=True)]), 0


batching.primitive_batchers[_convolution_p] = _batch_convolution
