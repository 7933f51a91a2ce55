"""MixToken: a box of tokens of another image (arXiv:2104.10858, section 3.3).

The box is drawn on the grid of tokens once for a batch, and the other image of
the i-th is the i-th from the end. Swapping twice gives the original back.
"""

import jax
import jax.numpy as jnp

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def mix_box(rng: jax.Array, grid: tuple[int, int]) -> Box:
  """The box of MixToken: (row1, column1, row2, column2), int32, may be empty.

  λ ~ Beta(1, 1) = U(0, 1); sides sqrt(1 - λ) of the grid's, rounded down; the
  center is uniform and the box is cut at the border.
  """
  lam_rng, *rngs = jax.random.split(rng, 3)
  side = jnp.sqrt(1 - jax.random.uniform(lam_rng))
  ends = []
  for key, size in zip(rngs, grid, strict=True):
    half = (size * side).astype(jnp.int32) // 2
    center = jax.random.randint(key, (), 0, size)
    ends.append(
      (jnp.maximum(center - half, 0), jnp.minimum(center + half, size))
    )
  (row1, row2), (column1, column2) = ends
  return row1, column1, row2, column2


def swap_box(x: jax.Array, box: Box, scale: int = 1) -> jax.Array:
  """(B, H, W, C) with the box, times `scale`, taken from the reversed batch."""
  row1, column1, row2, column2 = (scale * b for b in box)
  rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
  inside = ((rows >= row1) & (rows < row2))[:, None] & (
    (columns >= column1) & (columns < column2)
  )[None, :]
  return jnp.where(inside[None, :, :, None], x[::-1], x)
