"""Pixels that do not fill a patch."""

import jax
import numpy as np

from vit_jax import create_model
from vit_jax.models.patches import unseen_pixels


def test_pixels_that_do_not_fill_a_patch_are_named_and_not_seen():
  model = create_model(
    'vit_ti16', 3, patch_size=8, width=8, depth=1, num_heads=1, mlp_dim=8
  )
  words = unseen_pixels(model, (18, 16))
  assert '18x16 px' in words and 'the last 2 rows of pixels' in words
  assert 'columns' not in words and '16x16 and 24x16' in words
  assert unseen_pixels(model, (16, 24)) == ''
  assert unseen_pixels(create_model('r50_vit_b16'), (230, 230)) == ''
  images = np.random.default_rng(0).random((1, 18, 16, 3), np.float32)
  variables = model.init(jax.random.key(0), images, train=False)
  logits = model.apply(variables, images, train=False)[0]
  images[:, 16:] = 0
  assert (logits == model.apply(variables, images, train=False)[0]).all()
