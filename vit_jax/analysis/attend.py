"""Runs a model and collects its attention maps."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Attention:
  """The attention maps of a batch, and the grid of its patch tokens.

  Attributes:
    maps: one array (B, H, T, T) per layer, with axes image, head, query, key.
    grid: (rows, columns) of the patch tokens.
    num_prefix: number of tokens before the patches (class token, distillation
      token).
    class_maps: one array (B, H, 1, 1 + N) for each layer whose only query is
      the class token (CaiT, VOLO). These layers come after those of `maps`;
      `rollout.join_class_layers` joins them.
  """

  maps: list[np.ndarray]
  grid: tuple[int, int]
  num_prefix: int
  class_maps: list[np.ndarray] = dataclasses.field(default_factory=list)


def find_grid(tokens: int, stem: Sequence[int]) -> tuple[tuple[int, int], int]:
  """Finds the grid of the patches in a sequence of tokens.

  Args:
    tokens: length of the sequence, which may have up to two tokens before the
      patches.
    stem: (rows, columns) after the patch embedding. The later stages of some
      models have half or a quarter of the rows and columns.

  Returns:
    (rows, columns) of the patches, and the number of tokens before them.

  Raises:
    ValueError: none of these grids fits the length.
  """
  for stride in (1, 2, 4):
    rows, columns = (-(-n // stride) for n in stem)
    grid, prefix = (rows, columns), tokens - rows * columns
    if 0 <= prefix <= 2:
      return grid, prefix
  raise ValueError(
    f'{tokens} tokens do not fit a grid of {stem[0]}x{stem[1]} patches, nor a '
    'grid with half or a quarter of its sides, with up to two tokens before it'
  )


def collect(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: jax.Array | np.ndarray,
  *,
  mixed: bool = False,
) -> Attention:
  """Runs a model on some images and returns its attention maps.

  Args:
    model: a Linen module with the field `return_attention`.
    variables: variables of the model.
    images: (B, H, W, 3), normalized.
    mixed: which maps to return for CaiT and DeepViT, which mix their heads
      after the softmax. False returns the softmax; True the mixed maps, whose
      rows need not sum to one.

  Returns:
    The float32 maps of all layers that have the tokens of the last one. For a
    model with stages (VOLO), these are the layers of the last stage.

  Raises:
    ValueError: the model cannot return attention maps.
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


def bytes_per_image(
  model: nn.Module, variables: Mapping[str, Any], size: tuple[int, int]
) -> int:
  """Bytes of the attention maps of one image of (height, width) pixels."""
  if not hasattr(model, 'return_attention'):
    return 0
  _, out = jax.eval_shape(
    functools.partial(model.clone(return_attention=True).apply, train=False),
    variables,
    jax.ShapeDtypeStruct((1, *size, 3), 'float32'),
  )
  return sum(4 * a.size for a in jax.tree.leaves(out.get('attention', [])))
