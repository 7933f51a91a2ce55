"""Runs a model and collects its attention maps."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Attention:
  """Attention of one batch, and where its tokens are on the image.

  Attributes:
    maps: one array (B, H, T, T) per layer: image, head, query, key.
    grid: (rows, columns) of the patch tokens.
    num_prefix: tokens before the patches (class, distillation).
    class_maps: one array (B, H, 1, 1 + N) per later layer in which the class
      token is the only query (CaiT, VOLO), for `rollout.join_class_layers`.
  """

  maps: list[np.ndarray]
  grid: tuple[int, int]
  num_prefix: int
  class_maps: list[np.ndarray] = dataclasses.field(default_factory=list)


def find_grid(tokens: int, stem: Sequence[int]) -> tuple[tuple[int, int], int]:
  """The grid of patches that a sequence of tokens holds.

  Args:
    tokens: length of the sequence, with up to two tokens before the patches.
    stem: (rows, columns) after the patch embedding. Models that pool between
      their stages have a half or a quarter of it later.

  Returns:
    (rows, columns) of the patches, and the number of tokens before them.

  Raises:
    ValueError: no such grid has as many patches.
  """
  for stride in (1, 2, 4):
    rows, columns = (-(-n // stride) for n in stem)
    grid, prefix = (rows, columns), tokens - rows * columns
    if 0 <= prefix <= 2:
      return grid, prefix
  raise ValueError(
    f'{tokens} tokens do not fit a grid of {stem[0]}x{stem[1]} '
    'patches, nor its half or quarter'
  )


def collect(
  model: nn.Module,
  variables: Any,
  images: jax.Array | np.ndarray,
  *,
  mixed: bool = False,
) -> Attention:
  """Attention maps of a model for some images.

  Args:
    model: a Linen module with the field `return_attention`.
    variables: its variables.
    images: (B, H, W, 3), normalized.
    mixed: CaiT and DeepViT mix the maps of their heads after the softmax. True
      takes the mixed maps, whose rows need not sum to one; False the softmax.

  Returns:
    The float32 maps of all layers that attend to the same tokens. Of a model
    with stages (VOLO) these are the layers of the last stage.

  Raises:
    ValueError: the model forms no attention maps.
  """
  if not hasattr(model, 'return_attention'):
    raise ValueError(
      f'{type(model).__name__} has no attention maps: it has no field '
      'return_attention'
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
    raise ValueError(
      f'{type(model).__name__} has no layer in which all tokens attend to all '
      'tokens'
    )
  grid, num_prefix = find_grid(maps[0].shape[2], out['stem'].shape[1:3])
  class_maps = [np.asarray(a, np.float32) for a in out.get('attention_cls', [])]
  return Attention(maps, grid, num_prefix, class_maps)
