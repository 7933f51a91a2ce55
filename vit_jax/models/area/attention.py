"""Area attention (arXiv:1810.10126): queries attend to areas of the memory.

The memory is a grid of items. Every rectangle in it with at most the height and
width of `max_area` is an area. An area has a key and a value: by default the
mean of its items' keys and the sum of its items' values. A query attends to
areas by their keys and values as it does to items in ordinary attention.

Four implementations give the same numbers:

- explicit: the key and the value of each area is built (`explicit`). It serves
  every mode. Its two matrix products have A keys and values instead of S.
- factored: for mean keys with sum or mean values. An area's logit is then the
  mean of the ordinary logits over its items. The output is a sum of the items'
  values, each weighted with the probabilities of the areas that contain it. The
  matrix products are those of ordinary attention, whatever the largest area.
- kernel: the factored form as a Pallas kernel for TPUs (`kernel`).
- cuDNN: ordinary attention whose keys are the areas, on NVIDIA GPUs (`gpu`).

In a model, `area_attend` and `AreaAttention` replace `attention.attend`:
`MultiHeadDotProductAttention(..., attend_fn=area_attend((1, 2)))` for areas of
at most two neighbors in the sequence of tokens (with the class token, as in
the published model), `area_attend((2, 2), grid=(14, 14))` for squares of a
patch grid, where a class token is an area by itself.

B batch, T queries, S memory items, A areas, H heads, K and V head widths.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.area import explicit as with_areas
from vit_jax.models.area import fused, gpu
from vit_jax.models.area.areas import Areas
from vit_jax.models.area.explicit import (
  KEY_MODES,
  LEARNED_KEY_MODES,
  VALUE_MODES,
  Dropout,
)
from vit_jax.models.blocks import check_field
from vit_jax.models.initializers import torch_conv_bias, torch_conv_kernel
from vit_jax.models.platform import target_platform

IMPLS = ('auto', 'factored', 'kernel', 'explicit')


def area_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  memory_shape: tuple[int, int],
  max_area: tuple[int, int],
  separate_first: bool = False,
  key_mode: str = 'mean',
  value_mode: str = 'sum',
  top_k: int = 0,
  dropout: Dropout | None = None,
  mask: jax.Array | None = None,
  impl: str = 'auto',
  weights: bool = True,
  params: Mapping[str, Any] | None = None,
  noise: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Area attention (arXiv:1810.10126), softmax(q.key / sqrt(K)) over areas.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    memory_shape, max_area, separate_first: the attributes of `areas.Areas`.
    key_mode: how the key of an area follows from its items' keys, one of
      KEY_MODES; see `explicit.area_keys`.
    value_mode: the value of an area is the 'sum', 'mean' or 'max' of its items'
      values.
    top_k: if not 0, only the k most probable areas of each query are kept, and
      those that tie with the k-th; their probabilities are renormalized.
    dropout: function applied to the probabilities (B, H, T, A).
    mask: bool, broadcastable to (B, H, T, S); an area that contains a False
      item is not attended to.
    impl: 'explicit' for any mode; 'factored' for mean keys with sum or mean
      values; 'kernel' for these without top_k, dropout and mask; or 'auto',
      which factors where it can, and uses the kernel on TPUs and cuDNN on GPUs
      where that is faster.
    weights: whether to return the items' weights.
    params: parameters of the learned key modes; see `explicit.area_keys`.
    noise: PRNG key of the sampled key modes; see `explicit.area_keys`.

  Returns:
    The output (B, T, H, V), and float32 weights (B, H, T, S), or None without
    `weights`. A weight says how much an item's value contributes to the output
    without dropout; the weights of a query are scaled to a sum of 1. For 'max'
    values, the probability of an area is divided evenly among its items.

  Raises:
    ValueError: unknown mode, or shapes that do not fit.
  """
  height, width = memory_shape
  areas = Areas((height, width), (max_area[0], max_area[1]), separate_first)
  simple = not top_k and dropout is None and mask is None  # `fused` serves it
  _check(areas, k, v, key_mode, value_mode, impl, simple)
  if key_mode in LEARNED_KEY_MODES and params is None:
    raise ValueError(
      f'key_mode={key_mode!r} has parameters: give params, or use the module '
      'AreaAttention'
    )
  if mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:-1], areas.items))
  options: dict[str, Any] = dict(
    value_mode=value_mode, top_k=top_k, dropout=dropout, mask=mask
  )
  out: Any
  item_weights: Any = None
  if impl == 'explicit' or not _factors(key_mode, value_mode):
    out, item_weights = with_areas.explicit(
      q, k, v, areas, key_mode=key_mode, params=params, noise=noise, **options
    )
  elif not simple:
    out, item_weights = with_areas.factored(q, k, v, areas, **options)
  else:
    out = _attend(q, k, v, areas, value_mode, impl)
    if weights:
      item_weights = fused.item_weights(q, k, areas, value_mode)
  if not weights:
    return out, None
  return out, item_weights / item_weights.sum(-1, keepdims=True)


def _attend(q, k, v, areas, value_mode, impl):
  """Area attention without top_k, dropout and mask; not by `explicit`."""
  on_gpu = impl == 'auto' and target_platform() == 'gpu'
  if on_gpu and gpu.takes(q, k, v, areas):
    return gpu.attend(q, k, v, areas, value_mode)
  program = {'kernel': 'kernel', 'factored': 'jnp'}.get(impl, 'auto')
  return fused.fused(q, k, v, areas, value_mode, program)


def _factors(key_mode: str, value_mode: str) -> bool:
  return key_mode == 'mean' and value_mode != 'max'


def _check(
  areas: Areas,
  k: jax.Array,
  v: jax.Array,
  key_mode: str,
  value_mode: str,
  impl: str,
  simple: bool,
) -> None:
  """ValueError for unknown modes, and for modes or shapes that do not fit."""
  check_field('key_mode', key_mode, KEY_MODES)
  check_field('value_mode', value_mode, VALUE_MODES)
  check_field('impl', impl, IMPLS)
  if k.shape[1] != areas.items or v.shape[1] != areas.items:
    raise ValueError(
      f'{k.shape[1]} keys and {v.shape[1]} values do not fit memory_shape='
      f'{areas.memory_shape} with separate_first={areas.separate_first}: it '
      f'needs {areas.items} of each'
    )
  if impl in ('factored', 'kernel') and not _factors(key_mode, value_mode):
    raise ValueError(
      f"impl={impl!r} needs key_mode='mean' and value_mode 'sum' or 'mean', "
      f"got {key_mode!r} and {value_mode!r}; use impl='auto'"
    )
  if impl == 'kernel' and not simple:
    raise ValueError(
      "impl='kernel' takes no top_k, dropout or mask; use impl='auto'"
    )


def memory(items: int, grid: tuple[int, int] | None) -> dict[str, Any]:
  """The arguments memory_shape and separate_first for a number of tokens.

  Args:
    items: number of tokens, with the class token.
    grid: as in `area_attend`.
  """
  if grid is None:
    return dict(memory_shape=(1, items), separate_first=False)
  patches = math.prod(grid)
  if items not in (patches, patches + 1):
    raise ValueError(
      f'grid={grid} has {patches} patches and does not fit {items} tokens: '
      'give the (rows, columns) of the patches; a class token may precede them'
    )
  return dict(memory_shape=tuple(grid), separate_first=items > patches)


@dataclasses.dataclass(frozen=True)
class area_attend:
  """Area attention without parameters, called as `attention.attend` is.

  Attributes:
    max_area: (height, width) of the largest area.
    grid: None for areas in the sequence of all tokens, in which the class token
      is item 0; (rows, columns) for areas in the patch grid, where a class
      token is an area by itself.
    value_mode, top_k, impl, weights: the arguments of `area_attention`.
  """

  max_area: tuple[int, int]
  grid: tuple[int, int] | None = None
  value_mode: str = 'sum'
  top_k: int = 0
  impl: str = 'auto'
  weights: bool = True

  def __call__(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Attends; see `area_attention` for the arguments and results."""
    return area_attention(
      q,
      k,
      v,
      **memory(k.shape[1], self.grid),
      max_area=self.max_area,
      value_mode=self.value_mode,
      top_k=self.top_k,
      impl=self.impl,
      weights=self.weights,
      mask=mask,
      dropout=dropout,
    )


class AreaAttention(nn.Module):
  """Area attention of any mode, called as `attention.attend` is.

  The learned key modes have parameters, which all heads share:
  `height_embedding`, `width_embedding`, `Dense_{0,1}/{kernel,bias}`. The
  sampled key modes draw random numbers from the rng stream 'dropout'; without
  that stream, as in evaluation, they use the mean.

  Attributes:
    max_area, grid: the attributes of `area_attend`.
    key_mode, value_mode, top_k, impl: the arguments of `area_attention`.
  """

  max_area: tuple[int, int]
  grid: tuple[int, int] | None = None
  key_mode: str = 'mean'
  value_mode: str = 'sum'
  top_k: int = 0
  impl: str = 'auto'

  @nn.compact
  def __call__(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Attends; see `area_attention` for the arguments and results."""
    params = None
    if self.key_mode in LEARNED_KEY_MODES:
      params = self._parameters(k.shape[-1])
    noise = None
    if self.key_mode.startswith('sample') and self.has_rng('dropout'):
      noise = self.make_rng('dropout')
    return area_attention(
      q,
      k,
      v,
      **memory(k.shape[1], self.grid),
      max_area=self.max_area,
      key_mode=self.key_mode,
      value_mode=self.value_mode,
      top_k=self.top_k,
      impl=self.impl,
      mask=mask,
      dropout=dropout,
      params=params,
      noise=noise,
    )

  def _parameters(self, width: int) -> dict[str, Any]:
    if width % 2:
      raise ValueError(
        f'key_mode={self.key_mode!r} needs an even head width '
        f'for its size embedding, got {width}'
      )
    height, columns = self.max_area
    table = nn.initializers.normal(1.0)
    inputs = width * {'concat': 3, 'max_concat': 2, 'sample_concat': 2}.get(
      self.key_mode, 1
    )
    return {
      'height_embedding': self.param(
        'height_embedding', table, (height, width // 2)
      ),
      'width_embedding': self.param(
        'width_embedding', table, (columns, width // 2)
      ),
      'Dense_0': _DenseParameters(width, name='Dense_0')(inputs),
      'Dense_1': _DenseParameters(width, name='Dense_1')(width),
    }


class _DenseParameters(nn.Module):
  """Kernel and bias of a Dense layer, with PyTorch's initializers."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> dict[str, jax.Array]:
    return {
      'kernel': self.param(
        'kernel', torch_conv_kernel, (inputs, self.features)
      ),
      'bias': self.param('bias', torch_conv_bias(inputs), (self.features,)),
    }
