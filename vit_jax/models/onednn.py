"""Matrix products and convolutions by oneDNN, on one CPU.

jaxlib contains oneDNN, the library with which PyTorch computes on a CPU. The
compiler calls it wherever a program has a custom call of a certain name.
Batched products and convolutions on large maps are up to three times as fast as
those that the compiler writes itself, and products in bfloat16 on a CPU with
AMX up to eight times; docs/performance.md has the measurements.

Two things limit where it can be used. The names and settings of the calls are
no public interface, so they are used only with the versions of jaxlib that they
were tested with. And a program with such a call cannot be stored, so JAX's
cache of compiled programs never has it. Therefore `is_used` prefers the
compiler's own products where the cache is on, unless a caller asks for oneDNN,
as a long training does: it gains more in its steps than it loses at its start.

Everything here has the gradients that the functions of JAX have, in reverse
mode, to any order, and works under `jax.vmap`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
import functools
import json
import platform
import sys
from typing import Any, cast
import warnings

import jax
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
import jax.numpy as jnp
import jaxlib.version

from vit_jax.models.platform import target_platform

# The versions of jaxlib whose calls were tested. Another version may read other
# settings, and would end the process with them.
TESTED_VERSIONS = ('0.10.2',)

_ASKED: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
  'onednn', default=None
)


@contextlib.contextmanager
def asked(use: bool | None) -> Iterator[None]:
  """A context in which models are traced with oneDNN, or without it.

  Args:
    use: True, with oneDNN where it is available; False, without it; None, as
      outside of the context.
  """
  if use:
    # JAX tries to keep the program all the same, and says that it could not.
    warnings.filterwarnings(
      'ignore',
      'Error writing persistent compilation cache entry .* std::bad_alloc',
    )
  token = _ASKED.set(_ASKED.get() if use is None else use)
  try:
    yield
  finally:
    _ASKED.reset(token)


def is_available() -> bool:
  """Whether this jaxlib has the calls, on this machine."""
  return (
    sys.platform == 'linux'
    and platform.machine() == 'x86_64'
    and jaxlib.version.__version__ in TESTED_VERSIONS
  )


def is_used() -> bool:
  """Whether a model that is traced now uses oneDNN.

  It does so for a single CPU: over several, the compiler could not split the
  calls.
  """
  asked_for = _ASKED.get()
  if asked_for is False or not is_available() or target_platform() != 'cpu':
    return False
  mesh = jax.sharding.get_abstract_mesh()
  devices = len(jax.devices('cpu')) if mesh.empty else mesh.size
  return devices == 1 and bool(asked_for or not _programs_are_kept())


def _programs_are_kept() -> bool:
  """Whether JAX keeps compiled programs on the disk."""
  config: Any = jax.config
  return bool(
    config.jax_compilation_cache_dir and config.jax_enable_compilation_cache
  )


def _call(
  ctx: Any, name: str, settings: dict[str, Any], plain: Any, *operands: Any
) -> Any:
  """Lowers a primitive to a call of oneDNN.

  A program that is exported may run elsewhere, so it gets `plain` instead.

  Args:
    ctx: the context of the lowering rule.
    name: name of the custom call.
    settings: what the compiler reads as the call's configuration.
    plain: a function of the operands that computes the same.
    *operands: the values of the program.
  """
  if ctx.module_context.lowering_parameters.for_export:
    return mlir.lower_fun(plain, multiple_results=False)(ctx, *operands)
  # 2 is the version of custom calls whose configuration is a text.
  rule = jax.ffi.ffi_lowering(
    name, backend_config=json.dumps(settings), api_version=2
  )
  return rule(ctx, *operands)


# Products.

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
  dtype = jnp.dtype(dtype or a.dtype)
  y: Any = _product(a, b, transpose_a, transpose_b, dtype)
  return y.reshape(*lead, m, n)


def _product_shape(a, b, transpose_a, transpose_b):
  rows = a[-1] if transpose_a else a[-2]
  columns = b[-2] if transpose_b else b[-1]
  return (*a[:-2], rows, columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(a, b, transpose_a, transpose_b, dtype):
  return _bind_product(
    a, b, transpose_a=transpose_a, transpose_b=transpose_b, dtype=dtype
  )


# `jit` lets the primitive be called outside of a compiled function too.
@functools.partial(
  jax.jit, static_argnames=('transpose_a', 'transpose_b', 'dtype'), inline=True
)
def _bind_product(a, b, **settings):
  return cast(jax.Array, _product_p.bind(a, b, **settings))


def _product_backward(transpose_a, transpose_b, dtype, kept, g):
  del dtype
  a, b = kept
  g = g.astype(a.dtype)
  if transpose_a:
    grad_a = _product(b, g, transpose_b, True, a.dtype)
  else:
    grad_a = _product(g, b, False, not transpose_b, a.dtype)
  if transpose_b:
    grad_b = _product(g, a, True, transpose_a, b.dtype)
  else:
    grad_b = _product(a, g, not transpose_a, False, b.dtype)
  return grad_a, grad_b


_product.defvjp(
  lambda a, b, *settings: (_product(a, b, *settings), (a, b)), _product_backward
)


def _plain_product(a, b, *, transpose_a, transpose_b, dtype):
  a = jnp.swapaxes(a, -1, -2) if transpose_a else a
  b = jnp.swapaxes(b, -1, -2) if transpose_b else b
  return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(dtype)


@_product_p.def_abstract_eval
def _(a, b, *, transpose_a, transpose_b, dtype):
  shape = _product_shape(a.shape, b.shape, transpose_a, transpose_b)
  return core.ShapedArray(shape, dtype)


def _lower_product(ctx, a, b, **settings):
  config = {k: settings[k] for k in ('transpose_a', 'transpose_b')}
  return _call(
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


# Convolutions.

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: _Pairs
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


def _convolution_backward(strides, padding, kept, g):
  x, kernel = kept
  sizes = kernel.shape[:2]
  # The gradient of x is a convolution of g, spread out by the strides, with the
  # kernel turned by half a turn.
  spread = [(0, 0, stride - 1) for stride in strides]
  spread_g = jax.lax.pad(
    g, jnp.zeros((), g.dtype), [(0, 0, 0), *spread, (0, 0, 0)]
  )
  turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
  around = []
  for axis, (size, (before, _)) in enumerate(
    zip(sizes, padding, strict=True), 1
  ):
    after = x.shape[axis] - spread_g.shape[axis] + before
    around.append((size - 1 - before, after))
  grad_x = convolution(spread_g, turned, (1, 1), tuple(around))
  return grad_x, _kernel_gradient(x, g, sizes, strides, padding)


def _kernel_gradient(x, g, sizes, strides, padding):
  """The sum over all positions, as one product for each row of the kernel."""
  rows, columns = g.shape[1:3]
  channels, features = x.shape[-1], g.shape[-1]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  g = g.reshape(-1, features)

  def shifted(row, column):
    below, right = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
    return x[
      :, row : row + below : strides[0], column : column + right : strides[1]
    ]

  def of_row(row):
    inputs = jnp.concatenate([shifted(row, c) for c in range(sizes[1])], -1)
    inputs = inputs.reshape(-1, sizes[1] * channels)
    y = product(inputs, g, transpose_a=True)
    return y.reshape(sizes[1], channels, features)

  return jnp.stack([of_row(row) for row in range(sizes[0])])


convolution.defvjp(
  lambda x, kernel, *settings: (convolution(x, kernel, *settings), (x, kernel)),
  _convolution_backward,
)


def _plain_convolution(x, kernel, *, strides, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


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
  return _call(
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
