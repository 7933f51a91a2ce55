"""Constraints on layouts for TPUs do not change any number."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import tpu_layout
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.platform import traced_for
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
  ('mesh', 'heads'),
  [(None, 2), ('fsdp', 2), ('fsdp_tensor', 2), ('fsdp_tensor', 3)],
  ids=['no mesh', 'fsdp', 'heads split', 'too few heads to split'],
)
def test_layouts_for_a_tpu_change_no_number(monkeypatch, mesh, heads):
  """`dot_general` and `tokens_last` keep values and gradients, as on a TPU."""
  module = MultiHeadDotProductAttention(heads, before_dropout=True)
  x = jax.random.normal(jax.random.key(0), (4, 5, 12))
  variables = module.init(jax.random.key(1), x, x, False)

  def run():
    return jax.jit(
      jax.value_and_grad(
        lambda v, x: (module.apply(v, x, x, True)[0] ** 2).sum(), argnums=(0, 1)
      )
    )(variables, x)

  plain = run()
  told = []
  monkeypatch.setattr(tpu_layout, '_for_tpu', lambda: told.append(1) or True)
  devices = contextlib.nullcontext()
  if mesh is not None:
    tensor = 2 if mesh == 'fsdp_tensor' else 1
    devices = jax.set_mesh(make_mesh(mesh, fsdp=2, tensor=tensor))
  with traced_for('tpu'), devices:
    chex.assert_trees_all_close(run(), plain, rtol=1e-5, atol=5e-6)
  assert len(told) > 8  # four products, four layouts, and their gradients


def _layouts(jaxpr, in_map=False):
  """(order, whether within a shard_map, shape) of the constraints."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'layout_constraint':
      order = eqn.params['layout'].major_to_minor
      yield order, in_map, eqn.outvars[0].aval.shape
    inner = in_map or eqn.primitive.name == 'shard_map'
    for part in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield from _layouts(part, inner)


@pytest.mark.parametrize('examples, mapped', [(8, True), (6, False)])
@pytest.mark.parametrize(
  'mesh', [{'fsdp': 2}, {'fsdp': 2, 'tensor': 2}], ids=['fsdp', 'tensor']
)
def test_each_device_lays_out_its_own_part(monkeypatch, mesh, examples, mapped):
  """A compiler gathers whole arrays before a layout on slices of 4x4x4."""
  monkeypatch.setattr(tpu_layout, '_for_tpu', lambda: True)
  model = create_model('vit_ti16', 5, depth=2, width=24, num_heads=2)
  x = jnp.zeros((examples, 32, 32, 3))
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), x
  )

  def loss(v, x):
    logits, _ = model.apply(
      v, x, train=True, rngs={'dropout': jax.random.key(1)}
    )
    return logits.sum()

  with traced_for('tpu'), jax.set_mesh(make_mesh(**mesh)):
    program = jax.make_jaxpr(jax.grad(loss))(variables, x)
  found = list(_layouts(program.jaxpr))
  # Activations between blocks, those of attention, and gradients of kernels.
  assert {(0, 1, 2), (0, 2, 3, 1), (1, 2, 0)} <= {order for order, *_ in found}
  assert all(within for order, within, _ in found if order == (1, 2, 0))
  # 6 examples are not split over 8 devices, or over 4.
  of_tokens = [within for order, within, _ in found if order == (0, 2, 3, 1)]
  assert set(of_tokens) == {mapped}
  assert not mapped or all(within for _, within, _ in found)


def test_kernels_with_heads_have_the_width_innermost(monkeypatch):
  """A kernel gathered from other devices would have the head width there."""
  monkeypatch.setattr(tpu_layout, '_for_tpu', lambda: True)
  model = create_model('vit_ti16', 5, depth=2, width=24, num_heads=2)
  x = jnp.zeros((8, 32, 32, 3))
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), x
  )
  with traced_for('tpu'), jax.set_mesh(make_mesh('fsdp', fsdp=2)):
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(
      variables, x
    )
  found = list(_layouts(program.jaxpr))
  # Queries, keys and values of two blocks, and two outputs. Each is whole when
  # it is laid out.
  assert found.count(((1, 2, 0), True, (24, 2, 12))) == 6
  assert found.count(((0, 1, 2), True, (2, 12, 24))) == 2
