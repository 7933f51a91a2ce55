"""The attention of some images in few bytes, for the page's explorer.

A map has a row for each query and a column for each key. A row is stored as its
largest probability and, for each key, the square root of the share of that in
63 steps. The whole is compressed with zlib, which browsers can read. If it is
too large, neighboring patches are joined: first the queries, whose rows are
averaged, then the keys, whose probabilities are added.
"""

import base64
from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any
import zlib

import numpy as np

from vit_jax.analysis.areas import AreaMaps
from vit_jax.analysis.attend import Attention
from vit_jax.analysis.rollout import join_class_layers, rollouts

STEPS = 63
AREAS = 5  # areas of a query that are drawn
_PREFIX = {
  0: (),
  1: ('class token',),
  2: ('class token', 'distillation token'),
}


@dataclasses.dataclass(frozen=True)
class _Layer:
  """The maps of one layer.

  Attributes:
    name: such as 'layer 3'.
    maps: (M, B, Q, K), for each head and, as the last, the rollout up to here.
    queries, keys: names of the tokens before the patches.
    patches: whether patches are queries too.
  """

  name: str
  maps: np.ndarray
  queries: tuple[str, ...]
  keys: tuple[str, ...]
  patches: bool


def _layers(attention: Attention, pooled: str) -> list[_Layer]:
  """All layers, those whose only query is the class token last."""
  prefix = _PREFIX[attention.num_prefix]
  full = attention.maps
  if attention.class_maps:
    full = join_class_layers(full, attention.class_maps)
  layers = []
  for i, shares in enumerate(rollouts(full)):
    if i < len(attention.maps):
      heads, kind = attention.maps[i], prefix
      shares = shares[:, shares.shape[1] - heads.shape[2] :]
      shares = shares[:, :, shares.shape[2] - heads.shape[3] :]
    else:
      heads, kind = attention.class_maps[i - len(attention.maps)], _PREFIX[1]
      shares = shares[:, :1]
    maps = np.concatenate([heads.swapaxes(0, 1), shares[None]])
    is_class = heads.shape[2] == 1
    queries = kind
    if not kind and pooled:
      # The pooled output has the mean over all queries.
      queries = (pooled,)
      maps = np.concatenate([maps.mean(axis=2, keepdims=True), maps], axis=2)
    name = f'layer {i + 1}' + (' (class attention)' if is_class else '')
    layers.append(
      _Layer(name, maps.astype(np.float32), queries, kind, not is_class)
    )
  return layers


def _join(x: np.ndarray, grid: Sequence[int], side: int, axis: int):
  """Adds up squares of `side` x `side` patches, the last ones may be smaller.

  Args:
    x: `axis` has the patches of the grid, row by row.

  Returns:
    `axis` has the squares, row by row.
  """
  shape = x.shape
  x = x.reshape(*shape[:axis], *grid, *shape[axis + 1 :])
  for i in (0, 1):
    x = np.add.reduceat(x, np.arange(0, grid[i], side), axis=axis + i)
  return x.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def _reduced(
  maps: np.ndarray, layer: _Layer, grid: Sequence[int], sides: tuple[int, int]
) -> np.ndarray:
  """The maps with joined queries (the mean) and keys (the sum)."""
  query, key = sides
  if layer.patches and query > 1:
    first = len(layer.queries)
    count = _join(np.ones(grid[0] * grid[1]), grid, query, 0)
    patches = _join(maps[:, :, first:], grid, query, 2) / count[:, None]
    maps = np.concatenate([maps[:, :, :first], patches], axis=2)
  if key > 1:
    first = len(layer.keys)
    patches = _join(maps[..., first:], grid, key, 3)
    maps = np.concatenate([maps[..., :first], patches], axis=3)
  return maps


def _packed(maps: Sequence[np.ndarray]) -> bytes:
  """The maps of one image, (M, Q, K) for each layer, as compressed bytes.

  First the largest value of each row in float32, then the steps as bytes.
  """
  tops, steps = [], []
  for m in maps:
    top = np.maximum(m.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    tops.append(top.astype('<f4').tobytes())
    share = np.sqrt(np.clip(m / top, 0, 1))
    steps.append(np.rint(STEPS * share).astype(np.uint8).tobytes())
  return zlib.compress(b''.join(tops + steps), 9)


def _areas(layer: AreaMaps, pooled: bool) -> dict[str, Any]:
  """The most probable areas of each query, for each image and head.

  After the heads comes their mean, whose areas may be those of no head.
  """
  mean = layer.maps.mean(axis=1, keepdims=True)
  maps = np.concatenate([layer.maps, mean], axis=1)
  best = np.argsort(-maps, axis=-1, kind='stable')[..., :AREAS]
  share = np.take_along_axis(maps, best, axis=-1)
  # The token before the patches that stands for a mean has no areas.
  skip = 1 if pooled else 0
  return {
    'items': [np.flatnonzero(row).tolist() for row in layer.items],
    'skip': skip,
    'best': best.tolist(),
    'share': np.round(share, 4).tolist(),
  }


def explorer(
  attention: Attention,
  areas: Sequence[AreaMaps] = (),
  *,
  pooled: str = '',
  budget: int = 2_500_000,
) -> dict[str, Any]:
  """What the page needs to show the attention of some images.

  Args:
    attention: of a batch of images.
    areas: of the leading layers, for area attention.
    pooled: what stands for the mean over all queries, in a model without a
      class token, such as 'mean of all patches'; '' for no such query.
    budget: largest number of bytes of the maps of all images together.

  Returns:
    JSON values: 'grid', 'queryGrid' and 'keyGrid' (rows, columns); 'sides', how
    many patches are joined; 'layers' with their names and tokens; 'areas', an
    entry for each leading layer; 'images', a text (base64) for each image.
  """
  layers = _layers(attention, pooled if not attention.num_prefix else '')
  grid = attention.grid
  images = layers[0].maps.shape[1]
  for sides in itertools.chain(
    ((1, 1), (2, 1), (2, 2), (3, 2)), ((n, n) for n in range(3, max(grid) + 1))
  ):
    packed = []
    for i in range(images):
      maps = [
        _reduced(x.maps[:, i : i + 1], x, grid, sides)[:, 0] for x in layers
      ]
      packed.append(base64.b64encode(_packed(maps)).decode())
      if i == 0 and images * len(packed[0]) > 1.5 * budget:
        break
    if sum(map(len, packed)) <= budget and len(packed) == images:
      break
  ceil = lambda side: [-(-n // side) for n in grid]
  return {
    'grid': list(grid),
    'queryGrid': ceil(sides[0]),
    'keyGrid': ceil(sides[1]),
    'sides': list(sides),
    'steps': STEPS,
    'layers': [
      {
        'name': x.name,
        'heads': len(x.maps) - 1,
        'queries': list(x.queries),
        'keys': list(x.keys),
        'patches': x.patches,
      }
      for x in layers
    ],
    'areas': [
      _areas(x, bool(layers[0].queries[:1] == (pooled,))) for x in areas
    ]
    if sides[0] == 1
    else [],
    'images': packed,
  }
