"""Products and convolutions of oneDNN equal those of the compiler."""

import contextlib
import functools
import re
import subprocess
import sys

import chex
from flax import linen as nn
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny_config
from tests.random_variables import random_variables
from vit_jax.models import (
  cpu_products,
  onednn,
  onednn_convolutions,
  onednn_products,
  products,
)
from vit_jax.models.activations import GELU
from vit_jax.models.blocks import REMAT
from vit_jax.models.flops import inner_jaxprs
from vit_jax.models.fused import attend as fused
from vit_jax.models.platform import traced_for
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build, compile_step

pytestmark = pytest.mark.skipif(
  not onednn.is_available(), reason='this jaxlib was not tested with oneDNN'
)


def _normal(seed: int, *shape: int, dtype: str = 'float32') -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def _mesh(devices: int) -> jax.sharding.Mesh:
  return jax.make_mesh(
    (devices,),
    ('data',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )


@contextlib.contextmanager
def _used(use: bool = True):
  """One device, with or without oneDNN."""
  with jax.set_mesh(_mesh(1)), onednn.asked(use):
    assert onednn.is_used() == use
    yield


def _program(function, *args) -> str:
  return jax.jit(function).lower(*args).as_text()


def _count(jaxpr) -> int:
  """The products of oneDNN in a traced function."""
  return sum(
    (eqn.primitive.name == 'onednn_product')
    + sum(map(_count, inner_jaxprs(eqn)))
    for eqn in jaxpr.eqns
  )


def _with_gradients(function, *args):
  def run(*args):
    y, backward = jax.vjp(function, *args)
    return y, backward(_normal(9, *y.shape).astype(y.dtype))

  assert '__onednn$' in _program(run, *args)
  return jax.jit(run)(*args)


def _in_float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _assert_equal(actual, expected, dtype='float32'):
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('transpose_a', [False, True])
@pytest.mark.parametrize('transpose_b', [False, True])
@pytest.mark.parametrize('lead', [(), (3,), (2, 3)], ids=str)
def test_products(lead, transpose_a, transpose_b, dtype):
  a = _normal(0, *lead, *((5, 4) if transpose_a else (4, 5)), dtype=dtype)
  b = _normal(1, *lead, *((6, 5) if transpose_b else (5, 6)), dtype=dtype)

  def ours(a, b):
    return onednn_products.product(
      a, b, transpose_a=transpose_a, transpose_b=transpose_b
    )

  def plain(a, b):
    a = jnp.swapaxes(a, -1, -2) if transpose_a else a
    b = jnp.swapaxes(b, -1, -2) if transpose_b else b
    return a @ b

  y, backward = jax.vjp(plain, a, b)
  expected = y, backward(_normal(9, *y.shape).astype(dtype))
  with _used():
    _assert_equal(_with_gradients(ours, a, b), expected, dtype)
    # Mapped over copies of one operand, and with a gradient of a gradient.
    twice = jnp.stack([a, 2 * a])
    mapped = jax.vmap(ours, in_axes=(0, None))(twice, b)
    _assert_equal(mapped, jax.vmap(plain, in_axes=(0, None))(twice, b), dtype)


def test_a_product_in_float32_of_bfloat16():
  a, b = _normal(0, 4, 5, dtype='bfloat16'), _normal(1, 5, 6, dtype='bfloat16')
  with _used():
    y = onednn_products.product(a, b, dtype=jnp.float32)
  assert y.dtype == jnp.float32
  exact = a.astype(jnp.float32) @ b.astype(jnp.float32)
  chex.assert_trees_all_close(y, exact, atol=1e-5)


# Shapes (M, K, N) of products whose right operand oneDNN would read slowly.
@pytest.mark.parametrize(
  'shape',
  [
    (1024, 700, 1536),  # the gradient of the kernel is computed transposed
    (1100, 1536, 1536),  # its transposed form would be read slowly as well
    (200, 700, 1536),  # for few tokens the compiler's own products are taken
  ],
  ids=str,
)
@pytest.mark.parametrize('form', ['product', 'dense'])
def test_no_operand_is_read_slowly(form, shape):
  """Neither the value nor the gradients have a slow product of oneDNN."""
  m, k, n = shape
  x, kernel, bias = _normal(0, m, k), _normal(1, k, n) / k, _normal(2, n)
  functions = {
    'product': lambda x, kernel, _: onednn_products.product(x, kernel),
    'dense': lambda *args: onednn_products.dense(*args, 'gelu_tanh'),
  }
  plain = {
    'product': lambda x, kernel, _: x @ kernel,
    'dense': lambda x, kernel, bias: GELU['gelu_tanh'](x @ kernel + bias[None]),
  }

  def run(function, *args):
    y, backward = jax.vjp(function, *args)
    return y, backward(jnp.cos(y))

  with _used():
    actual = jax.jit(functools.partial(run, functions[form]))
    args = x, kernel, bias
    _assert_equal(actual(*args), run(plain[form], *args))
    calls = [
      line
      for text in (actual.lower(*args), jax.jit(functions[form]).lower(*args))
      for line in text.as_text().splitlines()
      if '__onednn$matmul' in line
    ]
    exported = export.export(jax.jit(functions[form]), platforms=['cpu'])(*args)
  assert calls or m < 1024
  for line in calls:
    if not re.search(r'transpose_b\\22: true', line):
      right = re.search(r'tensor<\d+x\d+xf32>, tensor<(\d+)x(\d+)xf32>', line)
      shape = jax.ShapeDtypeStruct(map(int, right.groups()), jnp.float32)
      assert not onednn_products._is_read_slowly(shape), line
  assert '__onednn$' not in exported.mlir_module()
  _assert_equal(exported.call(*args), plain[form](*args))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('activation', [None, *GELU])
def test_products_with_a_bias(activation, dtype):
  args = x, kernel, bias = (
    _normal(0, 2, 4, 5, dtype=dtype),
    _normal(1, 5, 3, 2, dtype=dtype),
    _normal(2, 3, 2, dtype=dtype),
  )

  def plain(x, kernel, bias):
    y = jnp.einsum('abi,ihk->abhk', x, kernel) + bias[None, None]
    return GELU[activation](y) if activation else y

  def ours(x, kernel, bias):
    return products.dense(x, kernel, bias, activation)

  def only_x(function):
    return lambda x: function(x, kernel, bias)

  exact = [x.astype(jnp.float32) for x in args]
  y, backward = jax.vjp(plain, *exact)
  expected = y, backward(_normal(9, *y.shape).astype(dtype).astype(jnp.float32))
  with _used():
    assert _program(ours, *args).count('__onednn$') == 1
    actual = _with_gradients(ours, *args)
    inference = jax.jit(ours)(*args)
    forward = jax.jvp(only_x(ours), (x,), (2 * x,))
    mapped = jax.vmap(ours, in_axes=(None, 0, None))(
      x, jnp.stack([kernel, 2 * kernel]), bias
    )
    with jax.disable_jit():
      plainly = ours(*args)
  _assert_equal(_in_float32(actual), expected, dtype)
  _assert_equal(_in_float32([inference, plainly]), [y, y], dtype)
  exact_forward = jax.jvp(only_x(plain), (exact[0],), (2 * exact[0],))
  _assert_equal(_in_float32(forward), exact_forward, dtype)
  exact_mapped = plain(exact[0], 2 * exact[1], exact[2])
  _assert_equal(_in_float32(mapped), jnp.stack([y, exact_mapped]), dtype)


def test_gradients_of_gradients_and_forward_mode():
  a, b = _normal(0, 4, 5), _normal(1, 5, 6)

  def second(product):
    length = lambda a: (jax.grad(lambda b: (product(a, b) ** 3).sum())(b)).sum()
    return jax.grad(length)(a)

  def forward(product):
    return jax.jvp(product, (a, b), (2 * a, b**2))

  with _used():
    _assert_equal(second(onednn_products.product), second(jnp.matmul))
    _assert_equal(forward(onednn_products.product), forward(jnp.matmul))


CONVOLUTIONS = [  # kernel, stride, padding
  (3, 1, 'SAME'),
  (3, 2, 'SAME'),
  (3, 2, ((1, 1), (1, 1))),
  (7, 2, ((3, 3), (3, 3))),
  (7, 4, ((3, 2), (0, 6))),
  (2, 2, 'VALID'),
  (3, 3, 'VALID'),
]


@pytest.mark.parametrize(('size', 'stride', 'padding'), CONVOLUTIONS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_convolutions(size, stride, padding, dtype):
  module = nn.Conv(
    6,
    (size, size + 1),
    stride,
    padding,
    use_bias=False,
    dtype=dtype,
    conv_general_dilated=products.convolution,
  )
  x = _normal(0, 2, 15, 14, 5, dtype=dtype)
  variables = {'params': {'kernel': _normal(1, size, size + 1, 5, 6)}}
  exact = nn.Conv(6, (size, size + 1), stride, padding, use_bias=False)
  y, backward = jax.vjp(exact.apply, variables, x.astype(jnp.float32))
  expected = y, backward(_normal(9, *y.shape).astype(dtype).astype(jnp.float32))
  with _used():
    actual = _with_gradients(module.apply, variables, x)
  _assert_equal(_in_float32(actual), expected, dtype)


def test_convolutions_that_are_mapped():
  x, kernel = _normal(0, 3, 2, 8, 8, 2), _normal(1, 3, 3, 3, 2, 4)
  run = lambda x, kernel: onednn_convolutions.convolution(
    x, kernel, (1, 1), ((1, 1), (1, 1))
  )
  with _used():
    for axes in ((0, None), (None, 0), (0, 0)):
      args = [a if i == 0 else a[0] for a, i in zip((x, kernel), axes)]
      expected = [
        run(*(a if i is None else a[n] for a, i in zip(args, axes)))
        for n in range(3)
      ]
      _assert_equal(jax.vmap(run, in_axes=axes)(*args), jnp.stack(expected))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_the_gradient_of_a_kernel(dtype):
  """Its own derivative with respect to the images."""
  x, kernel = _normal(0, 2, 8, 8, 4, dtype=dtype), _normal(1, 3, 3, 4, 5)

  def second(convolution, x, kernel):
    y = lambda kernel: convolution(x, kernel, (2, 2), ((1, 1), (1, 1)))
    return jnp.square(jax.grad(lambda k: y(k).sum())(kernel)).mean()

  exact = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  expected = jax.grad(second, 1)(exact, x.astype(jnp.float32), kernel)
  with _used():
    convolution = onednn_convolutions.convolution
    actual = jax.jit(jax.grad(second, 1), static_argnums=0)(
      convolution, x, kernel.astype(dtype)
    )
  assert jnp.abs(expected).max() > 0.1
  _assert_equal(_in_float32(actual), expected, dtype)


def test_padding_wider_than_the_kernel_is_left_to_the_compiler():
  x, kernel = _normal(0, 1, 6, 6, 2), _normal(1, 2, 2, 2, 3)
  run = lambda x, kernel: products.convolution(
    x,
    kernel,
    (1, 1),
    ((2, 0), (0, 0)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  with _used():
    assert '__onednn$' not in _program(run, x, kernel)
    assert run(x, kernel).shape == (1, 7, 5, 3)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_attention(dtype):
  shape = (2, 9, 3, 8)
  q, k, v = (_normal(i, *shape, dtype=dtype) for i in range(3))
  run = lambda q, k, v: fused.attend(q, k, v)[0]
  with traced_for('any'):
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    y, backward = jax.vjp(run, *exact)
    g = _normal(9, *shape).astype(dtype).astype(jnp.float32)
    expected = y, backward(g)
  with _used():
    actual = _with_gradients(run, q, k, v)
  _assert_equal(_in_float32(actual), expected, dtype)


def test_maps_of_heads():
  q, k = _normal(0, 2, 5, 3, 4), _normal(1, 2, 6, 3, 4)
  maps, kernel = _normal(2, 2, 3, 5, 6), _normal(3, 3, 4)
  for function, *args in (
    (products.attention_logits, q, k),
    (products.attention_output, maps, k),
    (products.mix_maps, maps, kernel),
  ):
    with traced_for('any'):
      y, backward = jax.vjp(function, *args)
      expected = y, backward(_normal(9, *y.shape))
    with _used():
      _assert_equal(_with_gradients(function, *args), expected)


MODELS = ['vit_ti16', 'cait_xxs24', 'volo_d1', 'mixer_s32', 'bit_r50x1']


@pytest.mark.parametrize('name', MODELS)
def test_logits_of_models(name):
  size = 64
  model = create_model(name, num_classes=7)
  x = _normal(0, 2, size, size, 3)
  variables = random_variables(model, x)
  # Two functions, because `jit` keeps what it has traced of one.
  plain, ours = (
    lambda v, x: model.apply(v, x, train=False)[0] for _ in range(2)
  )
  with _used(False):
    expected = jax.jit(plain)(variables, x)
  with _used():
    assert '__onednn$' in _program(ours, variables, x)
    actual = jax.jit(ours)(variables, x)
  chex.assert_trees_all_close(actual, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
  ('remat', 'kept'), [('full', 0), ('dots_no_batch', 1), ('dots', 2)]
)
def test_rematerialization_knows_its_products(remat, kept):
  a, batch = _normal(0, 4, 4), _normal(1, 2, 4, 4)

  def layer(a, batch):
    square = lambda x: jnp.sin(onednn_products.product(x, x))
    return square(batch) + square(a)[None]

  def products_of_the_gradient(function):
    loss = lambda a, batch: function(a, batch).sum()
    return _count(jax.make_jaxpr(jax.grad(loss, (0, 1)))(a, batch).jaxpr)

  with _used():
    without = products_of_the_gradient(layer)
    layer = jax.checkpoint(layer, policy=REMAT[remat])
    # Both products are needed again in the backward pass.
    assert products_of_the_gradient(layer) == without + 2 - kept


def test_other_types_and_empty_arrays_are_left_to_the_compiler():
  half = _normal(0, 3, 3, dtype='float16')
  with _used():
    assert not onednn.is_used(half, half)
    assert not onednn.is_used(half, half.astype(jnp.float32))
    assert not onednn.is_used(jnp.ones((0, 3)), jnp.ones((3, 2)))
    assert cpu_products.matmul(half, half).dtype == jnp.float16
    assert cpu_products.matmul(jnp.ones((0, 3)), jnp.ones((3, 2))).size == 0


def test_without_jit_the_plain_form_is_computed():
  a, b = _normal(0, 4, 5), _normal(1, 5, 6)
  x, kernel = _normal(0, 1, 6, 6, 2), _normal(1, 3, 3, 2, 3)
  convolve = lambda x: onednn_convolutions.convolution(
    x, kernel, (1, 1), ((1, 1), (1, 1))
  )
  with _used():
    expected = onednn_products.product(a, b), convolve(x)
    with jax.disable_jit():
      _assert_equal((onednn_products.product(a, b), convolve(x)), expected)


def test_an_exported_program_has_plain_products():
  a, b = _normal(0, 4, 5), _normal(1, 5, 6)
  with _used():
    program = export.export(jax.jit(onednn_products.product))(a, b)
  _assert_equal(program.call(a, b), a @ b)


def test_other_versions_of_jaxlib_and_other_platforms_do_not_use_it(
  monkeypatch,
):
  with _used():
    with traced_for('tpu'):
      assert not onednn.is_used()
    monkeypatch.setattr(onednn, 'TESTED_VERSIONS', ('0.0.1',))
    assert not onednn.is_used()


def test_several_devices_do_not_use_it():
  with jax.set_mesh(_mesh(2)), onednn.asked(True):
    assert not onednn.is_used()


PROGRAM = """
import jax, jax.numpy as jnp, warnings
from vit_jax.models import onednn
from vit_jax.models.products import attention_logits
q = jnp.ones((1, 2, 1, 4))
assert onednn.is_used() == {without_cache}
text = jax.jit(attention_logits).lower(q, q).as_text()
assert ('__onednn$' in text) == {without_cache}
with onednn.asked(True), warnings.catch_warnings():
  warnings.simplefilter('error')
  onednn.asked(True).__enter__()
  assert (jax.jit(lambda q: attention_logits(q, q))(q) == 4).all()
"""


@pytest.mark.parametrize('cache', [True, False])
def test_programs_that_are_kept_have_none_unless_asked(cache, tmp_path):
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PATH': '',
  }
  if cache:
    environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path)
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM.format(without_cache=not cache)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert 'Error writing' not in done.stderr


@pytest.mark.parametrize('steps', [10, 10**9])
def test_long_trainings_ask_for_it(steps):
  config = tiny_config(run=dict(steps=steps))
  mesh = make_mesh('data', devices=jax.devices()[:1])
  run = build(config, mesh, num_classes=3, num_examples=64)
  size = config.data.image_size
  batch = {
    'image': np.zeros((config.data.batch_size, size, size, 3), np.uint8),
    'label': np.zeros(config.data.batch_size, np.int32),
    'index': np.zeros(config.data.batch_size, np.int32),
  }
  with jax.set_mesh(mesh):
    text = compile_step(run).lower(run.abstract_state, batch, {}).as_text()
  assert ('__onednn$' in text) == (steps > 10)
