"""Depth-wise convolution against Flax's grouped convolution."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.depthwise import DepthwiseConv


@pytest.mark.parametrize('use_bias', [True, False])
@pytest.mark.parametrize(
  'size,stride,padding',
  [
    (3, 1, ((1, 1), (1, 1))),
    (3, 2, ((0, 1), (1, 1))),
    (5, 2, ((1, 2), (2, 2))),
    (5, 3, ((2, 2), (0, 0))),
  ],
)
def test_is_a_grouped_convolution(size, stride, padding, use_bias):
  x = jax.random.normal(jax.random.key(0), (2, 9, 8, 6))
  ours = DepthwiseConv(size, stride, padding, use_bias)
  flax = nn.Conv(
    6,
    (size, size),
    strides=stride,
    padding=padding,
    feature_group_count=6,
    use_bias=use_bias,
  )
  shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes
  )
  chex.assert_trees_all_equal_shapes(
    jax.eval_shape(flax.init, jax.random.key(0), x), variables
  )
  chex.assert_trees_all_close(
    ours.apply(variables, x), flax.apply(variables, x), atol=1e-4
  )
