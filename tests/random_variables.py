"""Variables of a model without its initializers, which compile slowly."""

import functools

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, images, seed: int = 0) -> dict:
  """Random values in the shapes of `model.init(key, images, train=False)`.

  They are N(0, 0.2), or N(1, 0.2) for scales and variances, so that every
  parameter of a small model changes its output.
  """
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )
  values = {}
  for path, x in flatten_dict(shapes).items():
    value = 0.2 * rng.standard_normal(x.shape)
    if path[-1] == 'var':
      value = np.abs(value)
    values[path] = jnp.asarray(value + (path[-1] in ('scale', 'var')), x.dtype)
  return unflatten_dict(values)
