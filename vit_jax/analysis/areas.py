"""Which areas the queries of area attention attend to (arXiv:1810.10126)."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from vit_jax.models.area.areas import Areas
from vit_jax.models.area.attention import memory
from vit_jax.models.area.explicit import area_probabilities
from vit_jax.models.attention import add_biases

_ATTENTION = 'MultiHeadDotProductAttention_0'


@dataclasses.dataclass(frozen=True)
class AreaMaps:
  """The areas of one layer, and how much each query attends to them.

  Attributes:
    areas: the areas, of which there are A.
    items: (A, S) whether an area has an item; item 0 may be a class token.
    maps: (B, H, T, A) probabilities.
  """

  areas: Areas
  items: np.ndarray
  maps: np.ndarray


def collect_areas(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: jax.Array | np.ndarray,
  grid: tuple[int, int],
) -> list[AreaMaps]:
  """Runs a model and returns the probabilities of the areas.

  Args:
    model: a Linen module; one without area attention has no such layer.
    variables: variables of the model.
    images: (B, H, W, 3), normalized.
    grid: (rows, columns) of the patches.

  Returns:
    One entry for each leading layer with area attention.
  """
  sizes = tuple(getattr(model, 'area_sizes', ()))
  if not sizes:
    return []
  _, state = jax.jit(
    functools.partial(
      model.apply,
      train=False,
      mutable=['intermediates'],
      capture_intermediates=lambda module, _: module.name in ('query', 'key'),
    )
  )(variables, images)
  blocks: Any = state['intermediates']['Transformer']
  result = []
  for i, size in enumerate(sizes):
    layer = blocks[f'encoderblock_{i}'][_ATTENTION]
    # A projection returns its products, of which there is one, and its bias.
    outputs = [layer[name]['__call__'][0] for name in ('query', 'key')]
    products, biases = zip(*outputs, strict=True)
    q, k = add_biases([x for (x,) in products], biases)
    of_grid = grid if size[0] > 1 else None
    areas = Areas(
      **memory(k.shape[1], of_grid), max_area=(int(size[0]), int(size[1]))
    )
    maps = np.asarray(area_probabilities(q, k, areas), np.float32)
    # The items of an area are those that its probability is spread over.
    items = np.asarray(areas.spread(np.eye(maps.shape[-1], dtype=np.float32)))
    result.append(AreaMaps(areas, items > 0, maps))
  return result
