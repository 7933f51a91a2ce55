"""Learned tokens and position tables in front of the first block.

The functions are called inside the compact method of a model and create
parameters of the model itself, with the released names: `cls`, `dist_token`,
`pos_embedding`.

B batch, N patches, T tokens, D width.
"""

from collections.abc import Sequence

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.dropout import Dropout
from vit_jax.models.products import add_parameter


def learned_token(
  model: nn.Module, name: str, x: jax.Array, init: Initializer
) -> jax.Array:
  """A learned token of a model, repeated for each example of a batch.

  Args:
    model: the module that gets the parameter (1, 1, D).
    name: name of the parameter.
    x: an array (B, T, D) with the batch size, width and dtype of the result.
    init: initializer of the parameter.

  Returns:
    (B, 1, D).
  """
  token = model.param(name, init, (1, 1, x.shape[-1])).astype(x.dtype)
  return jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))


def prepend_tokens(
  model: nn.Module, names: Sequence[str], x: jax.Array, init: Initializer
) -> jax.Array:
  """Puts learned tokens in front of others.

  Args:
    model: the module that gets the parameters.
    names: names of the parameters, one per token.
    x: (B, T, D).
    init: initializer of the parameters.

  Returns:
    (B, len(names) + T, D).
  """
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
  """Adds a learned position table to tokens, and applies dropout.

  Args:
    model: the module that gets the parameter `pos_embedding`, which has the
      shape of x with a batch of 1.
    x: tokens (B, T, D) or a map (B, H, W, D).
    init: initializer of the parameter.
    dropout: rate of dropout, in training (rng stream 'dropout').
    train: True in training, False in evaluation.

  Returns:
    The shape and dtype of x.
  """
  table = model.param('pos_embedding', init, (1, *x.shape[1:]))
  x = add_parameter(x, table[0].astype(x.dtype))
  return Dropout(dropout, deterministic=not train)(x)
