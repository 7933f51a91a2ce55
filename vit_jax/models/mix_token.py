"""MixToken: a box of tokens of another image (arXiv:2104.10858, section 3.3).

One random box on the grid of tokens serves a whole batch. Inside it, image i
gets the tokens of image i from the end of the batch. Doing this twice restores
the original.
"""

import jax
import jax.numpy as jnp

# (row1, column1, row2, column2); row2 and column2 are behind the last ones.
Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def mix_box(rng: jax.Array, grid: tuple[int, int]) -> Box:
  """Draws the box of MixToken.

  With λ from Beta(1, 1) = U(0, 1), the sides of the box are sqrt(1 - λ) of the
  grid's, rounded down. Its center is uniform, and it is cut at the border.

  Args:
    rng: PRNG key.
    grid: (rows, columns) of the tokens.

  Returns:
    int32 (row1, column1, row2, column2). The box may be empty.
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
  """Replaces a box of each image by that of the reversed batch.

  Args:
    x: images or maps (B, H, W, C).
    box: the box on the grid of tokens.
    scale: rows and columns of x for one of the grid.

  Returns:
    The shape of x.
  """
  row1, column1, row2, column2 = (scale * b for b in box)
  rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
  inside = ((rows >= row1) & (rows < row2))[:, None] & (
    (columns >= column1) & (columns < column2)
  )[None, :]
  return jnp.where(inside[None, :, :, None], x[::-1], x)
