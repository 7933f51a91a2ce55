"""Names and shapes of released files, for tests of the weight maps."""

import functools
import math
import pathlib
import re

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp

NAMES = pathlib.Path(__file__).parent / 'fixtures' / 'names'


def tsv_shapes(name: str, ignored=()) -> dict[str, tuple[int, ...]]:
  """Shapes by name of a recorded file, without the ignored names."""
  lines = (NAMES / f'{name}.tsv').read_text().splitlines()[1:]
  shapes = {}
  for line in lines:
    key, shape, *_ = line.split('\t')
    shapes[key] = () if shape == 'scalar' else tuple(
        int(n) for n in shape.split('x'))
  return {key: shape for key, shape in shapes.items()
          if not any(re.fullmatch(r, key) for r in ignored)}


def shapes_of(model, rules, image_size: int) -> dict[str, tuple[int, ...]]:
  """Released names and shapes that the rules give for a model's parameters.

  Every parameter must have exactly one rule, and the parts of one released
  array must be complete.
  """
  shapes = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0),
      jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32))
  parts, result = {}, {}
  for path, x in flatten_dict(shapes, sep='/').items():
    matches = [(r, r.match(path)) for r in rules if r.match(path)]
    assert len(matches) == 1, (path, matches)
    rule, name = matches[0]
    part, count = rule.part or (0, 1)
    taken = parts.setdefault(name, set())
    assert part not in taken, (path, name, part)
    taken.add(part)
    result[name] = (count, *released_shape(rule.layout, path, x.shape))
  for name, taken in parts.items():
    assert taken == set(range(result[name][0])), (name, taken)
  return {name: (shape[0] * shape[1], *shape[2:])
          for name, shape in result.items()}


def released_shape(layout: str, path: str, shape) -> tuple[int, ...]:
  if layout == 'conv':
    # A Dense kernel (I, O) can be a 1x1 convolution in the file.
    height, width, inputs, outputs = (1,) * (4 - len(shape)) + tuple(shape)
    return (outputs, inputs, height, width)
  if layout == 'dense':
    # (D, H, K) and (H, K, D) have D = H * K on the other side.
    inputs = shape[0] if not path.endswith('out/kernel') else (
        shape[0] * shape[1])
    return (math.prod(shape) // inputs, inputs)
  if path.endswith('bias') or len(shape) == 1:
    return (math.prod(shape),)
  return tuple(shape)
