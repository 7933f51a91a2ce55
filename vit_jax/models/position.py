"""Position embeddings of ViT (arXiv:2010.11929, appendix D.4, table D.3)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.attention import attend

# The allowed values of `posemb`, the kind of position embedding, and of
# `posemb_at`, where it is added.
POSEMBS = ('learn1d', 'learn2d', 'relative', 'sincos2d', 'none')
POSEMB_AT = ('stem', 'every_layer', 'every_layer_shared')
TABLES = ('learn1d', 'learn2d', 'sincos2d')  # the kinds that add a table


def sincos2d(
  height: int, width: int, dim: int, temperature: float = 10_000.0
) -> jax.Array:
  """The fixed sine-cosine table of arXiv:2104.02057, as in big_vision.

  The frequencies fall geometrically from 1 to exactly 1 / temperature.

  Args:
    height, width: the grid of patches.
    dim: width of the tokens.
    temperature: the inverse of the last frequency.

  Returns:
    float32 (1, height * width, dim), row by row.

  Raises:
    ValueError: dim is not a multiple of 4, or below 8.
  """
  if dim % 4 or dim < 8:
    raise ValueError(
      f"posemb='sincos2d' needs a width that is a multiple of 4 and at least 8"
      f', got {dim}'
    )
  y, x = jnp.mgrid[:height, :width]
  omega = jnp.arange(dim // 4, dtype=jnp.float32) / (dim // 4 - 1)
  omega = temperature**-omega
  y = jnp.einsum('n,d->nd', y.flatten().astype(jnp.float32), omega)
  x = jnp.einsum('n,d->nd', x.flatten().astype(jnp.float32), omega)
  return jnp.concatenate(
    [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1
  )[None]


class PositionEmbedding(nn.Module):
  """A table of position embeddings (arXiv:2010.11929, table D.3).

  Attributes:
    scheme: 'learn1d' learns one embedding per token. 'learn2d' learns one of
      width D/2 per row and one per column of the grid, which are concatenated,
      and one of width D per prefix token. 'sincos2d' is fixed, with zeros for
      the prefix tokens.
    grid: (height, width) of the patches.
    prefix: number of tokens in front of the patches.
    table_init: initializer of the learned embeddings.
  """

  scheme: str
  grid: tuple[int, int]
  prefix: int
  table_init: Initializer

  @nn.compact
  def __call__(self, width: int) -> jax.Array:
    """The table (1, prefix + height * columns, width).

    Raises:
      ValueError: `width` does not suit the scheme.
    """
    height, columns = self.grid
    if self.scheme == 'learn1d':
      shape = (1, self.prefix + height * columns, width)
      return self.param('pos_embedding', self.table_init, shape)
    if self.scheme == 'learn2d':
      return self._rows_and_columns(width)
    table = sincos2d(height, columns, width)
    return jnp.pad(table, ((0, 0), (self.prefix, 0), (0, 0)))

  def _rows_and_columns(self, width: int) -> jax.Array:
    if width % 2:
      raise ValueError(f"posemb='learn2d' needs an even width, got {width}")
    height, columns = self.grid
    half = width // 2
    rows = self.param('row_embedding', self.table_init, (1, height, 1, half))
    cols = self.param('col_embedding', self.table_init, (1, 1, columns, half))
    shape = (1, height, columns, half)
    table = jnp.concatenate(
      [jnp.broadcast_to(rows, shape), jnp.broadcast_to(cols, shape)], axis=-1
    ).reshape(1, height * columns, width)
    if not self.prefix:
      return table
    prefix = self.param(
      'prefix_embedding', self.table_init, (1, self.prefix, width)
    )
    return jnp.concatenate([prefix, table], axis=1)


def relative_attention(embedding: jax.Array) -> Callable[..., Any]:
  """Attention with relative position embeddings (table D.3).

  There is one embedding for each offset of a key from a query in the sequence.
  Its dot product with the scaled query is added to the logit.

  Args:
    embedding: (2 T - 1, K), shared by the heads; row T - 1 is for offset 0.

  Returns:
    A function with the signature of `attention.attend`, for T tokens.
  """
  tokens = (embedding.shape[0] + 1) // 2

  def attend_relative(q, k, v, **kwargs):
    logits = jnp.einsum(
      'bthk,rk->bhtr', q * (q.shape[-1] ** -0.5), embedding.astype(q.dtype)
    )
    offset = jnp.arange(tokens)[None] - jnp.arange(tokens)[:, None]
    index = jnp.broadcast_to(
      (offset + tokens - 1)[None, None], (*logits.shape[:2], tokens, tokens)
    )
    bias = jnp.take_along_axis(logits, index, axis=-1)
    return attend(q, k, v, bias=bias.astype(jnp.float32), **kwargs)

  return attend_relative
