"""The kernel for TPUs equals the plain form, and is chosen where it fits.

The kernel runs in interpret mode. What a TPU would run is seen in programs that
are lowered for one.
"""

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


def _interpreted(q, k, v):
  return tpu.attend(q, k, v, True)


def _plain(q, k, v):
  return attention.attend(q, k, v)[0]


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_kernel_equals_the_plain_form(shape, dtype):
  args = operands(shape, dtype)
  ours = jax.jit(lambda *x: with_gradients(_interpreted, *x))(*args)
  exact = [x.astype(jnp.float32) for x in args]
  plain = with_gradients(_plain, *exact)
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  for a, b in zip(ours, plain, strict=True):
    assert a.dtype == dtype
    atol = tolerance * float(jnp.abs(b).max())
    chex.assert_trees_all_close(a.astype(jnp.float32), b, atol=atol)


def test_large_logits_do_not_overflow():
  args = [100 * x for x in operands(SHAPES['tokens'], 'float32')]
  ours = jax.jit(lambda *x: with_gradients(_interpreted, *x))(*args)
  chex.assert_tree_all_finite(ours)
  chex.assert_trees_all_close(ours[0], _plain(*args[:3]), rtol=1e-4)


@pytest.mark.parametrize('preset', ['data', 'fsdp_tensor'])
def test_each_device_computes_its_examples_and_heads(preset):
  mesh = make_mesh(preset)
  args = operands((8, 100, 100, 2, 8, 8), 'float32')
  with jax.set_mesh(mesh):
    assert tpu.fits(*args[:3])
    ours = jax.jit(lambda *x: with_gradients(_interpreted, *x))(*args)
  chex.assert_trees_all_close(ours, with_gradients(_plain, *args), atol=1e-4)


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
