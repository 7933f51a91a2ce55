"""Which formats a model has, and the names and shapes of its parameters."""

import functools
import importlib
import math
import pkgutil

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.weights.errors import WeightsError
from vit_jax.weights.rules import Rule

# Every model has its own tree as a format.
FLAX = [Rule('params/(.*)', r'\1'), Rule('(batch_stats/.*)', r'\1')]


@functools.cache
def _modules():
  from vit_jax.weights import maps

  return [
    importlib.import_module(f'{maps.__name__}.{m.name}')
    for m in pkgutil.iter_modules(maps.__path__)
  ]


def map_module(model):
  """The module of `maps` for a model's class (or a base of it), or None."""
  return _find(model)[0]


def _find(model):
  for cls in type(model).__mro__:
    for module in _modules():
      if cls.__name__ in module.MAPS:
        return module, module.MAPS[cls.__name__]
  return None, {}


def known_formats(model) -> dict[str, list[Rule]]:
  """The formats a model loads from and saves to: {name: ordered rules}.

  'npz' are the published Google files; 'big_vision', 'timm' and 'official'
  (the authors' PyTorch code) speak for themselves; 'flax' is the model's own
  tree.
  """
  return {
    **{
      fmt: rules(model) if callable(rules) else rules
      for fmt, rules in _find(model)[1].items()
    },
    'flax': FLAX,
  }


def rules_of(model, fmt: str) -> list[Rule]:
  known = known_formats(model)
  if fmt not in known:
    raise WeightsError(
      f'format {fmt!r} is not known for '
      f'{type(model).__name__}; allowed: {", ".join(known)}'
    )
  return known[fmt]


def assign(rules, paths) -> dict[str, tuple[Rule, str]]:
  """Flax path -> its first matching rule and released name."""
  assigned = {}
  for path in paths:
    for rule in rules:
      name = rule.match(path)
      if name is not None:
        assigned[path] = rule, name
        break
  return assigned


def as_pair(image_size) -> tuple[int, int]:
  if np.ndim(image_size) == 0:
    return int(image_size), int(image_size)
  height, width = image_size
  return int(height), int(width)


def model_shapes(model, image_size):
  """Flat {path: shape} of a model's variables and the (h, w) of its patches.

  By `jax.eval_shape`: nothing is computed. The grid is None for a model
  without an intermediate 'stem' (B, h, w, D).
  """
  try:
    hash(model)
  except TypeError:  # a field such as a list
    return _trace.__wrapped__(model, as_pair(image_size))
  return _trace(model, as_pair(image_size))


@functools.lru_cache(maxsize=8)
def _trace(model, image_size):
  (_, out), variables = jax.eval_shape(
    functools.partial(model.init_with_output, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32),
  )
  stem = out.get('stem')
  grid = stem.shape[1:3] if stem is not None and stem.ndim == 4 else None
  return {
    path: tuple(x.shape) for path, x in flatten_dict(variables, sep='/').items()
  }, grid


def unrolled(model):
  """The same model with its blocks one by one."""
  return model.clone(scan=False) if getattr(model, 'scan', False) else model


def any_image_size(model) -> tuple[int, int]:
  """A size that fits the model's patches, where only names matter."""
  return tuple(
    math.lcm(32 * p, 224) for p in as_pair(getattr(model, 'patch_size', 16))
  )


def abstract(shape) -> np.ndarray:
  """An array of this shape without memory of its own."""
  return np.broadcast_to(np.float32(0), shape)
