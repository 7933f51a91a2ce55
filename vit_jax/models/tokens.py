"""Learned tokens and position tables in front of the first block.

The functions are called inside the compact method of a model and create its
parameters, so that these have the released names: `cls`, `dist_token`,
`pos_embedding`. B batch, N patches, T tokens, D width.
"""

from collections.abc import Sequence

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.dropout import Dropout


def learned_token(
  model: nn.Module, name: str, x: jax.Array, init: Initializer
) -> jax.Array:
  """The parameter `name` (1, 1, D) of a model, once for each example of x.

  Args:
    model: the module that owns the parameter.
    name: of the parameter.
    x: (B, T, D), which gives the batch size, the width and the dtype.
    init: of the parameter.

  Returns:
    (B, 1, D).
  """
  token = model.param(name, init, (1, 1, x.shape[-1])).astype(x.dtype)
  return jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))


def prepend_tokens(
  model: nn.Module, names: Sequence[str], x: jax.Array, init: Initializer
) -> jax.Array:
  """Puts learned tokens in front of x: (B, T, D) -> (B, len(names) + T, D)."""
  tokens = [learned_token(model, name, x, init) for name in names]
  return jnp.concatenate([*tokens, x], axis=1)


def add_position_table(
  model: nn.Module,
  x: jax.Array,
  init: Initializer,
  *,
  dropout: float = 0.0,
  train: bool = False,
) -> jax.Array:
  """Adds the parameter `pos_embedding`, one row per token, then dropout.

  Args:
    model: the module that owns the parameter.
    x: tokens (B, T, D) or a map (B, H, W, D).
    init: of the parameter, which has the shape of x with a batch of 1.
    dropout: rate, in training (rng stream 'dropout').
    train: whether this is training.

  Returns:
    The shape and dtype of x.
  """
  table = model.param('pos_embedding', init, (1, *x.shape[1:]))
  x = x + table.astype(x.dtype)
  return Dropout(dropout, deterministic=not train)(x)
