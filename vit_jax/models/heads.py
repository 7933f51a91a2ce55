"""Pooling and classification, after the last block of a model."""

from flax import linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.dense import Dense
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import MlpBlock


def classify(
  features: jax.Array,
  num_classes: int,
  *,
  kernel_init: Initializer = nn.initializers.zeros,
  bias: float = 0.0,
  bias_init: Initializer | None = None,
  name: str = 'head',
) -> jax.Array:
  """The linear classification head, computed in float32.

  It is called inside the compact method of a model, which gets the parameters
  `{name}/kernel` (D, num_classes) and `{name}/bias`. The head is computed in
  float32, as in big_vision: with a bias of -10, the usual one for a sigmoid
  loss, bfloat16 logits would be multiples of 0.0625.

  Args:
    features: (..., D), any float dtype.
    num_classes: 0 for no head; the features are then returned.
    kernel_init: initializer of the kernel.
    bias: initial value of the bias.
    bias_init: initializer of the bias, instead of the constant `bias`.
    name: name of the layer.

  Returns:
    Logits (..., num_classes), or features (..., D); float32.
  """
  features = features.astype(jnp.float32)
  if not num_classes:
    return features
  return Dense(
    num_classes,
    kernel_init=kernel_init,
    bias_init=bias_init or nn.initializers.constant(bias),
    name=name,
  )(features)


def global_mean(x: jax.Array) -> jax.Array:
  """The mean over a map's positions, (B, H, W, C) -> (B, C), in float32."""
  return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class MAPHead(nn.Module):
  """Multi-head attention pooling with one learned query (arXiv:2106.04560).

  It is computed in float32, as in big_vision.

  Attributes:
    num_heads: heads of the attention.
    mlp_dim: width of the hidden layer of the MLP that follows.
    activation: key of `activations.GELU`.
    norm_eps: what LayerNorm adds to the variance.
  """

  num_heads: int
  mlp_dim: int
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, T, D) -> (B, D)."""
    probe = self.param(
      'probe', nn.initializers.xavier_uniform(), (1, 1, x.shape[-1])
    )
    probe = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1]))
    x, _ = MultiHeadDotProductAttention(
      self.num_heads, name='MultiHeadDotProductAttention_0'
    )(probe, x, train)
    y = LayerNorm(epsilon=self.norm_eps, name='LayerNorm_0')(x)
    x = x + MlpBlock(
      self.mlp_dim, activation=self.activation, name='MlpBlock_0'
    )(y, train)
    return x[:, 0]
