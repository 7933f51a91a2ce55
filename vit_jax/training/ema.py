"""The exponential moving average of parameters and BatchNorm statistics."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_update(
  ema: Any, new: Any, decay: float, step: jax.Array | None = None
) -> Any:
  """One update of the moving average: ema + (1 - d) (new - ema).

  Args:
    ema: the average, a tree like `new`. It begins as a copy of the parameters.
    new: the parameters or statistics after the step.
    decay: d, such as DeiT's 0.99996.
    step: number of updates before this one. If given, d is min(decay,
      (1 + step) / (10 + step)), so that a short run forgets its initial
      parameters. None keeps d constant, as timm does.

  Returns:
    The new average.
  """
  rate: Any = decay
  if step is not None:
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(
    lambda e, n: (e + (1 - rate) * (n - e)).astype(e.dtype), ema, new
  )
