"""Runs a model and collects its attention maps."""

import dataclasses
import functools
import math

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Attention:
  """Attention of one batch, and how its tokens lie on the image.

  Attributes:
    maps: one array (B, H, T, T) per layer: image, head, query, key.
    grid: (rows, columns) of the patch tokens.
    num_prefix: tokens before the patches (class, distillation).
    class_maps: (B, H, 1, 1 + N) of later layers where only the class token
      asks (CaiT, VOLO), for `rollout.join_class_layers`.
  """

  maps: list[np.ndarray]
  grid: tuple[int, int]
  num_prefix: int
  class_maps: list[np.ndarray] = dataclasses.field(default_factory=list)


def find_grid(tokens: int, stem) -> tuple[tuple[int, int], int]:
  """Grid of the patches among some tokens.

  Args:
    tokens: their number.
    stem: (rows, columns) after the patch embedding; models with pooling
      between stages have a half or a quarter of it.

  Returns:
    (rows, columns) of the patches, and the number of tokens before them.
  """
  for stride in (1, 2, 4):
    grid = tuple(-(-n // stride) for n in stem)
    prefix = tokens - math.prod(grid)
    if 0 <= prefix <= 2:
      return grid, prefix
  raise ValueError(
    f'{tokens} tokens do not fit a grid of {stem[0]}x{stem[1]} '
    'patches, nor its half or quarter'
  )


def collect(model, variables, images, *, mixed: bool = False) -> Attention:
  """Attention maps of a model for some images.

  Args:
    model: a Linen module with the field `return_attention`.
    variables: its variables.
    images: (B, H, W, 3), normalised.
    mixed: where heads are recombined (CaiT, DeepViT), take the maps that weigh
      the values, whose rows need not sum to one, instead of the softmax.

  Returns:
    The maps of all layers that attend among the same tokens (in a model with
    pooling or outlook attention, those of its last such stage), float32.

  Raises:
    ValueError: the model forms no attention maps.
  """
  if not hasattr(model, 'return_attention'):
    raise ValueError(
      f'{type(model).__name__} has no attention maps; models '
      'with the field return_attention have'
    )
  model = model.clone(return_attention=True)
  _, out = jax.jit(functools.partial(model.apply, train=False))(
    variables, images
  )
  maps = out.get('attention', [])
  if not mixed:
    maps = out.get('attention_softmax', maps)
  maps = [
    np.asarray(a, np.float32)
    for a in maps
    if a.ndim == 4 and a.shape[2] == a.shape[3]
  ]
  maps = [a for a in maps if a.shape[2] == maps[-1].shape[2]]
  if not maps:
    raise ValueError(f'{type(model).__name__} has no attention among tokens')
  grid, num_prefix = find_grid(maps[0].shape[2], out['stem'].shape[1:3])
  class_maps = [np.asarray(a, np.float32) for a in out.get('attention_cls', [])]
  return Attention(maps, grid, num_prefix, class_maps)
