"""Area attention on NVIDIA GPUs, by cuDNN.

To cuDNN, the areas are the keys and values of ordinary attention: the mean keys
and the summed values of the areas are computed first, small arrays of A x K
numbers for each head. Then no array of T x A or T x S numbers is written to
memory, in either pass. The matrix products are A / S times those of the
factored form, which has to write its T x S arrays.

Like `vit_jax.models.fused.gpu`, this has not been run on a GPU. It is expected
to be faster up to `MOST_AREAS`, by the figures given there: 2 to 4 times the
speed of the plain form. `python -m benchmarks.area_attention` measures both.

B batch, T queries, S memory items, A areas, H heads, K head width.
"""

from typing import Any

import jax

from vit_jax.models.area.areas import Areas
from vit_jax.models.area.explicit import area_keys, area_statistic
from vit_jax.models.fused import gpu

MOST_AREAS = 4  # for each item; 2 x 2 areas of a patch grid are 3.7


def takes(q: jax.Array, k: jax.Array, v: jax.Array, areas: Areas) -> bool:
  """Whether cuDNN computes these arrays, and is expected to be faster.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, V).
    areas: the areas of the S items.
  """
  count = len(areas.sizes)
  if count > MOST_AREAS * areas.items:
    return False
  of_areas: Any = [
    jax.ShapeDtypeStruct((x.shape[0], count, *x.shape[2:]), x.dtype)
    for x in (k, v)
  ]
  return gpu.takes(q, *of_areas)


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, areas: Areas, value_mode: str
) -> jax.Array:
  """Area attention with mean keys and sum or mean values.

  Args:
    q, k, v: (B, T, H, K), (B, S, H, K), (B, S, H, K), which `takes` accepts.
    areas: the areas of the S items.
    value_mode: 'sum' or 'mean'.

  Returns:
    (B, T, H, K).
  """
  values = area_statistic(v, areas, value_mode).astype(v.dtype)
  return gpu.attend(q, area_keys(k, areas), values)
