"""Initial values by small programs have the bits of those of one program."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build
from vit_jax.recipe.shared import small_fields
from vit_jax.training.state import init_variables


@pytest.mark.parametrize('name', ['vit_ti16', 'bit_r50x1', 'cait_xxs24'])
def test_the_bits_are_those_of_one_program(name):
  config = tiny_config(data=dict(image_size=32), optim=dict(ema=0.9))
  fields = small_fields(name)
  config.model.update(name=name, **fields)
  for key in [k for k in config.model if k not in {'name', *fields}]:
    del config.model[key]
  mesh = make_mesh('data', devices=jax.devices()[:1])
  run = build(config, mesh, num_classes=5, num_examples=64)
  seed = config.run.seed
  whole = jax.jit(lambda: init_variables(run.model, (32, 32), seed))()
  state = run.init()
  for path, value in jax.tree_util.tree_leaves_with_path(whole['params']):
    for tree in (state.params, state.ema):
      other = tree
      for key in path:
        other = other[key.key]
      assert np.array_equal(value, other), path
  jax.tree.map(
    lambda x, s: np.testing.assert_equal(
      (x.shape, x.sharding), (s.shape, s.sharding)
    ),
    state,
    run.abstract_state,
  )
