"""The kernel for TPUs equals the plain form, and is chosen where it fits.

The kernel runs in interpret mode. What a TPU would run is seen in programs that
are lowered for one.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.attention_operands import operands, with_gradients
from vit_jax.models import attention, tpu_layout
from vit_jax.models.fused import attend as fused
from vit_jax.models.fused import tpu
from vit_jax.models.platform import traced_for
from vit_jax.parallel.mesh import make_mesh

SHAPES = {  # batch, queries, keys, heads, K, V
  'tokens': (2, 17, 17, 2, 16, 16),
  'other keys and values': (1, 17, 20, 2, 16, 32),
  'odd heads, narrow': (1, 18, 18, 3, 8, 8),
  'five heads': (1, 9, 9, 5, 16, 16),
}


def _interpreted(q, k, v, biases=None) -> Any:
  return tpu.attend(q, k, v, biases, True)


def _plain(q, k, v, biases=None):
  return attention.attend(*attention.add_biases((q, k, v), biases))[0]


def _with_biases(q, k, v, g):
  """The arguments of `_gradients` for operands, and biases for them."""
  keys = jax.random.split(jax.random.key(1), 3)
  biases = [
    jax.random.normal(key, x.shape[2:])
    for key, x in zip(keys, (q, k, v), strict=True)
  ]
  return (q, k, v), biases, g


def _gradients(attend, qkv, biases, g):
  """The output of `attend`, and the gradients of q, k, v and of the biases."""
  out, pull = jax.vjp(attend, *qkv, biases)
  *grads, of_biases = pull(g)
  return [out, *grads, *of_biases]


def _assert_equal_to_the_plain_form(ours, qkv, biases, g):
  # The plain form gets the sums as they are rounded to the dtype.
  exact = lambda x: x.astype(jnp.float32)
  sums = [exact(x) for x in attention.add_biases(qkv, biases)]
  zeros = [jnp.zeros_like(b) for b in biases]
  plain = _gradients(_plain, sums, zeros, exact(g))
  tolerance = 1e-5 if g.dtype == 'float32' else 0.02
  sizes = [float(jnp.abs(x).max()) for x in plain]
  # The gradient of the keys' bias is zero but for the rounding of a sum over
  # tokens, so it is compared with the size of what is added.
  assert not ours[5].any()
  sizes[5] = float(jnp.abs(plain[2]).sum((0, 1)).max())
  for a, b, size in zip(ours, plain, sizes, strict=True):
    chex.assert_trees_all_close(exact(a), b, atol=tolerance * size)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_kernel_equals_the_plain_form(shape, dtype):
  args = _with_biases(*operands(shape, dtype))
  ours = jax.jit(functools.partial(_gradients, _interpreted))(*args)
  assert [x.dtype for x in ours] == [dtype] * 4 + ['float32'] * 3
  _assert_equal_to_the_plain_form(ours, *args)


def test_each_core_of_a_chip_sums_its_examples(monkeypatch):
  monkeypatch.setattr(tpu_layout, 'cores', lambda: 2)
  args = _with_biases(*operands((4, 9, 9, 2, 8, 8), 'float32'))
  ours = jax.jit(functools.partial(_gradients, _interpreted))(*args)
  _assert_equal_to_the_plain_form(ours, *args)


def test_large_logits_do_not_overflow():
  args = [100 * x for x in operands(SHAPES['tokens'], 'float32')]
  ours = jax.jit(lambda *x: with_gradients(_interpreted, *x))(*args)
  chex.assert_tree_all_finite(ours)
  chex.assert_trees_all_close(ours[0], _plain(*args[:3]), rtol=1e-4)


@pytest.mark.parametrize('preset', ['data', 'fsdp_tensor'])
def test_each_device_computes_its_examples_and_heads(preset):
  mesh = make_mesh(preset)
  args = _with_biases(*operands((8, 100, 100, 2, 8, 8), 'float32'))
  with jax.set_mesh(mesh):
    assert tpu.fits(*args[0])
    ours = jax.jit(functools.partial(_gradients, _interpreted))(*args)
  _assert_equal_to_the_plain_form(ours, *args)


def _kernels(shape, dtype='bfloat16', **kwargs):
  """Number of kernels in the gradient of `fused.attend` as traced for TPUs."""
  q, k, v, _ = operands(shape, dtype)
  grad = jax.grad(
    lambda *x: fused.attend(*x, **kwargs)[0].astype('float32').sum(), (0, 1, 2)
  )
  with traced_for('tpu'):
    return str(jax.make_jaxpr(grad)(q, k, v)).count('pallas_call[')


TOKENS = (8, 100, 100, 2, 16, 16)


@pytest.mark.parametrize(
  'changes, kwargs',
  [
    ({}, dict(dropout=lambda probs: probs / 2)),
    (dict(queries=1), {}),
    (dict(keys=tpu.MAX_TOKENS + 1), {}),
    (dict(queries=257, keys=257), {}),
    (dict(batch=3), {}),
  ],
  ids=['dropout', 'class token', 'many tokens', 'padding', 'batch'],
)
def test_other_shapes_take_the_plain_form(changes, kwargs):
  names = ('batch', 'queries', 'keys', 'heads', 'K', 'V')
  shape = tuple((dict(zip(names, TOKENS, strict=True)) | changes).values())
  with jax.set_mesh(make_mesh()):
    assert _kernels(TOKENS) == 2
    assert _kernels(shape, **kwargs) == 0


def test_without_a_mesh_only_one_device_takes_the_kernel(monkeypatch):
  assert _kernels(TOKENS) == 0
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert _kernels(TOKENS) == 2


def test_few_heads_on_a_tensor_axis_take_the_plain_form():
  with jax.set_mesh(make_mesh('fsdp_tensor', tensor=4)):
    assert not tpu_layout.can_split(8, 2)
    assert _kernels(TOKENS) == 0


def test_a_program_for_any_platform_has_no_kernel():
  q, k, v, _ = operands(TOKENS, 'float32')
  with traced_for('any'):
    program = jax.make_jaxpr(lambda *x: fused.attend(*x)[0])(q, k, v)
  assert 'pallas_call' not in str(program)
