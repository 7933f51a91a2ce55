"""Outlook attention of VOLO (arXiv:2106.13112, section 3.1).

B batch, (H, W) map, (h, w) windows, N heads, K head width.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.dense import Dense
from vit_jax.models.dropout import Dropout
from vit_jax.models.fusion import row_products
from vit_jax.models.initializers import normal02
from vit_jax.models.platform import target_platform
from vit_jax.models.softmax import softmax

# Windows of three entries at stride 2, along one axis. Position 2i is entry 1
# of window i. Position 2i + 1 is entry 2 of window i and entry 0 of window i +
# 1. {parity of a position: ((number of a window minus i, entry in it), ...)}
_WINDOWS = {0: ((0, 1),), 1: ((0, 2), (1, 0))}


def outlook(weights: jax.Array, v: jax.Array) -> jax.Array:
  """Mixes values in overlapping 3x3 windows at stride 2 (eq. 4 and 5).

  Window (i, j) is centered at position (2i, 2j). Inside a window, entry q
  receives the sum over the entries k of weights[q, k] * v[k]. A position is an
  entry of one, two or four windows, and its result is the sum of what these
  entries receive.

  The paper copies v into windows, which takes 9/4 of the size of v, multiplies
  the copies with the weights, and adds the windows up. Here, for each pair of
  positions, the weights of all windows that contain both are added first. So a
  position is the weighted sum of 9, 15 or 25 neighbors, 16 on average, instead
  of 20.25 products. v is split into four planes by the parities of row and
  column. The sums are over shifted planes, which XLA fuses, so no copies of
  windows are stored, neither in the forward nor in the backward pass.

  Args:
    weights: (B, h, w, N, 9, 9), h = ceil(H / 2), w = ceil(W / 2).
    v: (B, H, W, N, K).

  Returns:
    (B, H, W, N, K).
  """
  height, width = v.shape[1:3]
  windows = weights.shape[1:3]
  padded = _pad_map(v, (2, 2 + height % 2), (2, 2 + width % 2))
  planes = _planes(padded)  # (B, 1 + h + 1, 1 + w + 1, N, K) each
  batch, _, _, heads = weights.shape[:4]
  weights = _pad_map(weights, (0, 1), (0, 1)).reshape(
    batch, windows[0] + 1, windows[1] + 1, heads, 81
  )
  multiply = (
    _multiply_on_cpu if target_platform() == 'cpu' else lambda w, v: w * v
  )
  # A split, because its gradient is one concatenation; the gradient of 81
  # slices would be a sum of 81 arrays.
  planes_of_weights = jnp.split(weights, 81, axis=-1)

  def shift(x: jax.Array, i: int, j: int) -> jax.Array:
    return x[:, i : i + windows[0], j : j + windows[1]]

  def mix(row: int, column: int) -> jax.Array:
    """The result at the positions of one parity, (B, h, w, N, K)."""
    pairs: dict[tuple[int, int], list[jax.Array]] = {}
    for si, qi in _WINDOWS[row]:
      for sj, qj in _WINDOWS[column]:
        for k in range(9):
          # The offset of entry k from position (2i, 2j).
          offset = 2 * si + k // 3 - 1, 2 * sj + k % 3 - 1
          weight = planes_of_weights[9 * (3 * qi + qj) + k]
          pairs.setdefault(offset, []).append(shift(weight, si, sj))
    total = jnp.zeros((), v.dtype)
    for (oi, oj), weight in pairs.items():
      plane = planes[oi % 2, oj % 2]
      shifted = shift(plane, oi // 2 + 1, oj // 2 + 1)
      total = total + multiply(sum(weight), shifted)
    return total

  rows = [
    jnp.stack([mix(row, column) for column in (0, 1)], axis=3) for row in (0, 1)
  ]
  y = jnp.stack(rows, axis=2)  # (B, h, 2, w, 2, N, K)
  y = y.reshape(batch, 2 * windows[0], 2 * windows[1], *v.shape[3:])
  return y[:, :height, :width]


@jax.custom_vjp
def _multiply_on_cpu(weights, v):
  """weights * v, whose gradient has the sums of `fusion.row_products`.

  Args:
    weights: (..., 1).
    v: (..., K).

  Returns:
    (..., K).
  """
  return weights * v


def _multiply_gradient(kept, g):
  weights, v = kept
  return row_products(g, v).astype(weights.dtype), weights * g


_multiply_on_cpu.defvjp(lambda w, v: (w * v, (w, v)), _multiply_gradient)


def _planes(x: jax.Array) -> dict[tuple[int, int], jax.Array]:
  """The positions of a map by the parities of their row and column.

  On a CPU, `jnp.split` is used, because its gradient is one concatenation. The
  gradient of slices with a stride is a sum of four padded maps, which a CPU
  computes half as fast. The compiler for TPUs fuses that sum: by its estimate,
  a step of VOLO-D1 takes 0.8 of 28 ms less with slices.

  Args:
    x: (B, H, W, ...), of even height and width.

  Returns:
    (B, H / 2, W / 2, ...) for each pair of parities.
  """
  if target_platform() != 'cpu':
    return {(i, j): x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)}
  batch, height, width, *rest = x.shape
  half = batch, height // 2, width // 2, *rest
  x = x.reshape(batch, height // 2, 2, width // 2, 2, *rest)
  return {
    (row, column): plane.reshape(half)
    for row, rows in enumerate(jnp.split(x, 2, axis=2))
    for column, plane in enumerate(jnp.split(rows, 2, axis=4))
  }


def _pad_map(
  x: jax.Array, rows: Sequence[int], columns: Sequence[int]
) -> jax.Array:
  """Pads the two axes of a map (B, H, W, ...) with zeros."""
  return jnp.pad(x, ((0, 0), rows, columns) + ((0, 0),) * (x.ndim - 3))


class OutlookAttention(nn.Module):
  """Outlook attention in 3x3 windows at stride 2.

  The weights of a window are a linear map of the mean of four positions at its
  center; there are no queries and keys. Parameters `v`, `attn` (for the
  weights) and `out`.

  Attributes:
    num_heads: N.
    qkv_bias: whether `v` has a bias.
    dropout: rate of dropout on the weights, in training.
    dtype: dtype of the activations.
  """

  num_heads: int
  qkv_bias: bool = False
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Attends within windows.

    Args:
      x: (B, H, W, D).
      train: turns dropout on (rng stream 'dropout').

    Returns:
      (B, H, W, D), and the probabilities (B, N, h * w, 9, 9) of each window.

    Raises:
      ValueError: the heads do not divide the width D.
    """
    batch, height, width, dim = x.shape
    if dim % self.num_heads:
      raise ValueError(
        f'width {dim} is not divisible by num_heads {self.num_heads}'
      )
    head_width = dim // self.num_heads
    dense = functools.partial(Dense, dtype=self.dtype, kernel_init=normal02)
    v = dense(dim, use_bias=self.qkv_bias, name='v')(x)
    v = v.reshape(batch, height, width, self.num_heads, head_width)
    padding: Any = ((0, height % 2), (0, width % 2))
    mean = nn.avg_pool(x, (2, 2), (2, 2), padding, count_include_pad=False)
    logits = dense(81 * self.num_heads, name='attn')(mean)
    logits = logits.reshape(*mean.shape[:3], self.num_heads, 9, 9)
    probs = softmax(logits.astype(jnp.float32) * head_width**-0.5)
    weights = Dropout(self.dropout, deterministic=not train)(probs)
    # A CPU adds and multiplies bfloat16 numbers several times as slowly as
    # float32 ones.
    dtype = jnp.float32 if target_platform() == 'cpu' else self.dtype
    dtype = jnp.promote_types(dtype, self.dtype)
    y = outlook(weights.astype(dtype), v.astype(dtype))
    y = y.astype(self.dtype).reshape(x.shape)
    maps = probs.reshape(batch, -1, self.num_heads, 9, 9).swapaxes(1, 2)
    return dense(dim, name='out')(y), maps
