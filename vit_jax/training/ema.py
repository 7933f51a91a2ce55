"""The exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

# ------------------------------------------------------ averages and safety


def ema_update(ema, params, decay: float, step=None):
  """Moving average of the parameters: ema + (1 - d) (params - ema).

  Args:
    ema: the average, a tree like `params`, at first a copy of it.
    params: the new parameters.
    decay: d, as DeiT's 0.99996.
    step: updates made before this one. If given, d is ramped up as min(decay,
      (1 + step) / (10 + step)), so that short runs forget their start; None
      for the constant decay of timm.

  Returns:
    The new average.
  """
  if step is not None:
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(
    lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), ema, params
  )
