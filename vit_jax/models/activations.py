"""The activations of the hidden layers of MLPs."""

import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.platform import target_platform


def _gelu_erf(x: jax.Array) -> jax.Array:
  """GELU (arXiv:1606.08415) as PyTorch computes it.

  `nn.gelu` uses erfc, which takes several times as long on a CPU.
  """
  half = 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))
  return x * half.astype(x.dtype)


# The allowed values of `activation`. Google's code uses the tanh approximation
# of GELU, PyTorch the exact function, and OpenAI's CLIP a sigmoid.
GELU = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'gelu_erf': _gelu_erf,
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}


def activate(x: jax.Array, activation: str | None) -> jax.Array:
  """Applies an activation.

  On a CPU, its gradient is computed from x alone. Otherwise up to three arrays
  of the size of x would be kept for it, and the time to write and read them is
  longer than that of computing them again. A CPU computes bfloat16 activations
  in float32, because it adds and multiplies bfloat16 numbers several times as
  slowly.

  Args:
    x: the output of the hidden layer, of any shape.
    activation: key of GELU; None returns x.
  """
  if activation is None:
    return x
  function = GELU[activation]
  if target_platform() == 'cpu':
    wide = jnp.promote_types(x.dtype, jnp.float32)
    in_float32 = lambda x: function(x.astype(wide)).astype(x.dtype)
    return jax.checkpoint(in_float32)(x)
  return function(x)
