"""Areas that queries attend to, against the attention maps of the model."""

import jax
import numpy as np

from vit_jax.analysis.areas import collect_areas
from vit_jax.analysis.attend import collect
from vit_jax.models.registry import create_model
from vit_jax.recipe import shared


def test_areas_are_those_of_the_model():
  """The probabilities of areas, spread over items, are the attention map."""
  small = shared.small_fields('vit')
  model = create_model('vit_ti16', 5, **{**small, 'area_sizes': ((2, 2),)})
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 16, 16, 3)).astype('f4')
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  # All parameters are random, so that the biases have a part in it.
  variables = jax.tree.map(
    lambda x: 0.5 * rng.normal(size=x.shape).astype(x.dtype), shapes
  )
  attention = collect(model, variables, images)
  (areas,) = collect_areas(model, variables, images, attention.grid)
  np.testing.assert_allclose(areas.maps.sum(-1), 1, rtol=1e-5)
  items = areas.maps @ areas.items.astype('f4')
  items /= items.sum(-1, keepdims=True)
  np.testing.assert_allclose(items, attention.maps[0], atol=1e-6)
