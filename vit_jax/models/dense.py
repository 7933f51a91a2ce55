"""A dense layer, computed as `products` has it for the device at hand."""

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models import products


class Dense(nn.Module):
  """`flax.linen.Dense`, and an activation, which some CPUs add in one pass.

  Parameters, as those of `nn.Dense`: `kernel` (I, O), `bias` (O,), float32.

  Attributes:
    features: O.
    use_bias: whether there is a bias.
    activation: key of `activations.GELU`; None for none.
    dtype: dtype of the activations; None means that of x and the parameters.
    kernel_init, bias_init: initializers.
    before_dropout: see `products.dot_general`.
  """

  features: int
  use_bias: bool = True
  activation: str | None = None
  dtype: DTypeLike | None = None
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros
  before_dropout: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., I) -> (..., O)."""
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    bias = None
    if self.use_bias:
      bias = self.param('bias', self.bias_init, shape[1:], jnp.float32)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    return products.dense(
      x,
      kernel,
      bias,
      self.activation,
      before_dropout=self.before_dropout,
    )
