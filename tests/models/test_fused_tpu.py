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
from vit_jax.models.fused import tpu, tpu_rows
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


ROWS = {
  'two heads in 128 lanes, other keys': (1, 17, 34, 2, 64, 64),
  'eight heads in five tiles': (1, 16, 16, 8, 80, 80),
}


@pytest.mark.parametrize('shape', ROWS.values(), ids=ROWS)
def test_the_kernel_for_rows_equals_the_plain_form(shape):
  args = operands(shape, 'bfloat16')
  rows = lambda q, k, v: tpu_rows.attend(q, k, v, True)
  ours = jax.jit(lambda *x: with_gradients(rows, *x))(*args)
  plain = with_gradients(_plain, *(x.astype(jnp.float32) for x in args))
  for a, b in zip(ours, plain, strict=True):
    assert a.dtype == 'bfloat16' and a.shape == b.shape
    atol = 0.02 * float(jnp.abs(b).max())
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


def test_each_device_computes_its_rows():
  args = operands((4, 100, 100, 4, 64, 64), 'bfloat16')
  rows = lambda q, k, v: tpu_rows.attend(q, k, v, True)
  with jax.set_mesh(make_mesh('fsdp_tensor', tensor=2)):
    assert tpu_rows.fits(*args[:3])
    ours = jax.jit(lambda *x: with_gradients(rows, *x))(*args)
  plain = with_gradients(_plain, *(x.astype(jnp.float32) for x in args))
  for a, b in zip(ours, plain, strict=True):
    atol = 0.02 * float(jnp.abs(b).max())
    chex.assert_trees_all_close(a.astype(jnp.float32), b, atol=atol)


@pytest.mark.parametrize(
  'change',
  [
    dict(dtype='float32'),
    dict(heads=3),
    dict(value=32),
    dict(heads=16, width=72, value=72),
    dict(tokens=257),
    dict(heads=16, width=80, value=80, tokens=577),
  ],
  ids=str,
)
def test_other_operands_have_no_rows(change):
  """16 heads of width 72 fill nine tiles, which are too many for a step; with
  577 tokens, those of width 80 are, too."""

  def fits(tokens=197, heads=4, width=64, value=64, dtype='bfloat16'):
    q = jax.ShapeDtypeStruct((8, tokens, heads, width), dtype)
    v = jax.ShapeDtypeStruct((8, tokens, heads, value), dtype)
    return tpu_rows.fits(q, q, v)

  with jax.set_mesh(make_mesh()):
    assert fits() and fits(heads=16, width=80, value=80) and fits(tokens=577)
    assert not fits(**change)
  with jax.set_mesh(make_mesh('fsdp_tensor', tensor=4)):
    assert fits(heads=8) and not fits(heads=4)


def test_a_layer_with_rows_equals_the_plain_one(monkeypatch):
  """Its projections are matrix products, and its attention the kernel."""
  x = jax.random.normal(jax.random.key(0), (1, 97, 128))
  layer = lambda attend, dtype: attention.MultiHeadDotProductAttention(
    2, dtype=dtype, attend_fn=attend, before_dropout=True
  )
  plain = layer(attention.attend, 'float32')
  variables = plain.init(jax.random.key(1), x, x, False)

  def run(module):
    loss = lambda v, x: (module.apply(v, x, x, True)[0] ** 2).mean()
    return jax.jit(jax.grad(loss, (0, 1)))(variables, x)

  expected = run(plain)
  called = []
  kernel = tpu_rows.attend

  def attend(*args):
    called.append(args)
    return kernel(*args, True)

  monkeypatch.setattr(tpu_rows, 'attend', attend)
  monkeypatch.setattr(tpu_layout, '_for_tpu', lambda: True)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  with traced_for('tpu'):
    ours = run(layer(fused.attend, 'bfloat16'))
  assert len(called) == 1
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
  for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    assert a.shape == b.shape
    # The gradient of the keys' bias is zero but for rounding.
    atol = 0.03 * float(jnp.abs(b).max()) + 1e-3 * largest
    chex.assert_trees_all_close(a.astype(jnp.float32), b, atol=atol)


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
