"""Constraints on layouts for TPUs do not change any number."""

import contextlib

import chex
import jax
import pytest

from vit_jax.models import tpu_layout
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.platform import traced_for
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
