"""Constraints on layouts for TPUs do not change any number."""

import chex
import jax

from vit_jax.models import tpu_layout
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.platform import traced_for


def test_layouts_for_a_tpu_change_no_number(monkeypatch):
  """`dot_general` and `lay_out` keep values and gradients, as on a TPU."""
  module = MultiHeadDotProductAttention(2, before_dropout=True)
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
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
  with traced_for('tpu'):
    chex.assert_trees_all_close(run(), plain, rtol=1e-5, atol=1e-6)
  assert len(told) > 8  # four products, four layouts, and their gradients
