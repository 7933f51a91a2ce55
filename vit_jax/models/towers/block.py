"""The blocks of vision towers that are close to ViT's.

`TowerBlock` is ViT's block with what later papers changed in its layers:
RMSNorm (arXiv:1910.07467), norms of queries and keys (arXiv:2302.05442, section
2), norms inside the branches (Sub-LN, arXiv:2210.06423, as in BEiT-3),
projections without biases, and another MLP. `PostNormBlock` has its norms at
the ends of the branches (arXiv:2111.09883, section 3.2).

The layers have the names of `encoder.EncoderBlock`, so that the rules for
sharding and for files of weights apply to both; an RMSNorm takes the name of
the LayerNorm that it replaces.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.activations import activate
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.blocks import scale_channels
from vit_jax.models.dense import Dense
from vit_jax.models.dropout import Dropout, DropPath
from vit_jax.models.fused.attend import attend_fn
from vit_jax.models.initializers import INITIALIZERS
from vit_jax.models.layer_norm import LayerNorm
from vit_jax.models.mlp import MlpBlock
from vit_jax.models.towers.swiglu import SwiGLU

NORMS = {'layer': LayerNorm, 'rms': nn.RMSNorm}
MLPS = ('mlp', 'swiglu', 'swiglu_packed')


class NormedAttention(nn.Module):
  """Attention with norms of queries and keys, or of the output of the heads.

  Attributes:
    norm: makes a norm of a name.
    qk_norm: whether queries and keys are normalized over the width of a head.
    inner_norm: whether the concatenated heads are normalized.
    attend_fn: a function like `attention.attend`.
  """

  norm: Callable[..., nn.Module]
  qk_norm: bool
  inner_norm: bool
  attend_fn: Callable[..., Any]

  @nn.compact
  def __call__(
    self, q: jax.Array, k: jax.Array, v: jax.Array, **kwargs: Any
  ) -> tuple[jax.Array, jax.Array]:
    """See `attention.attend`."""
    if self.qk_norm:
      q = self.norm(name='query_norm')(q)
      k = self.norm(name='key_norm')(k)
    y, probs = self.attend_fn(q, k, v, **kwargs)
    if self.inner_norm:
      flat = y.reshape(*y.shape[:2], -1)
      y = self.norm(name='inner_norm')(flat).reshape(y.shape)
    return y, probs


class SubNormMlp(nn.Module):
  """An MLP with a norm of its hidden layer (Sub-LN, arXiv:2210.06423)."""

  mlp_dim: int
  norm: Callable[..., nn.Module]
  activation: str = 'gelu_erf'
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, T, D) -> (B, T, D); `train` turns dropout on."""
    y = Dense(self.mlp_dim, dtype=self.dtype, name='Dense_0')(x)
    y = activate(y, self.activation)
    y = Dropout(self.dropout, deterministic=not train)(y)
    y = self.norm(name='inner_norm')(y)
    y = Dense(x.shape[-1], dtype=self.dtype, name='Dense_1')(y)
    return Dropout(self.dropout, deterministic=not train)(y)


class TowerBlock(nn.Module):
  """x + attention(norm(x)), then x + MLP(norm(x)).

  Attributes:
    num_heads, mlp_dim, grid, prefix, dropout, attention_dropout, layer_scale,
      activation, norm_eps, init_style, dtype, return_attention: as in
      `encoder.EncoderBlock`.
    norm: key of NORMS.
    mlp: one of MLPS; those of `swiglu` differ only in files of weights.
    qkv_bias: whether query, key and value have a bias.
    out_bias: whether the output of the attention, and a SwiGLU, have biases.
    qk_norm: whether queries and keys are normalized.
    inner_norm: whether the heads and the hidden layer are normalized.
    attend_fn: a function like `attention.attend`, or a module called like it.
  """

  num_heads: int
  mlp_dim: int
  grid: tuple[int, int] = (1, 1)
  prefix: int = 0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  layer_scale: float | None = None
  activation: str = 'gelu_erf'
  norm_eps: float = 1e-6
  init_style: str = 'timm'
  dtype: DTypeLike = jnp.float32
  return_attention: bool = False
  norm: str = 'layer'
  mlp: str = 'mlp'
  qkv_bias: bool = True
  out_bias: bool = True
  qk_norm: bool = False
  inner_norm: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Applies the block.

    Args:
      x: (B, T, D).
      rate: drop-path rate of both branches.
      train: turns dropout and drop path on (rng stream 'dropout').

    Returns:
      (B, T, D); and intermediates: 'tokens', the same array, and with
      `return_attention` 'attention' (B, H, T, T).
    """
    y = self.normalize('LayerNorm_0', x)
    y, probs = self.attention('MultiHeadDotProductAttention_0', y, train)
    y = scale_channels(self, 'gamma_1', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)
    y = self.mlp_branch('MlpBlock_0', self.normalize('LayerNorm_1', x), train)
    y = scale_channels(self, 'gamma_2', y, self.layer_scale)
    x = x + DropPath()(y, rate, train)
    return x, self.intermediates(x, probs)

  # The layers of the block; they are called inside a compact method.

  def normalize(self, name: str, x: jax.Array) -> jax.Array:
    """The norm `name` of x (B, T, D)."""
    return self._norm(name=name)(x)

  @property
  def _norm(self) -> Callable[..., nn.Module]:
    return functools.partial(
      NORMS[self.norm], epsilon=self.norm_eps, dtype=self.dtype
    )

  def attention(
    self, name: str, x: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """The attention `name` over x (B, T, D), and its probabilities."""
    init = INITIALIZERS[self.init_style]
    y, probs = MultiHeadDotProductAttention(
      self.num_heads,
      self.attention_dropout,
      qkv_bias=self.qkv_bias,
      out_bias=self.out_bias,
      dtype=self.dtype,
      kernel_init=init.kernel,
      bias_init=init.bias(x.shape[-1]),
      attend_fn=self.attend_fn(),
      name=name,
    )(x, x, train)
    return Dropout(self.dropout, deterministic=not train)(y), probs

  def attend_fn(self) -> Callable[..., Any]:
    """What computes attention from queries, keys and values."""
    if not self.qk_norm and not self.inner_norm:
      return attend_fn(self.return_attention)
    return NormedAttention(
      self._norm,
      self.qk_norm,
      self.inner_norm,
      attend_fn(self.return_attention),
      name='attention_norms',
    )

  def mlp_branch(self, name: str, x: jax.Array, train: bool) -> jax.Array:
    """The MLP `name` of x (B, T, D)."""
    fields: dict[str, Any] = dict(
      mlp_dim=self.mlp_dim, dropout=self.dropout, dtype=self.dtype, name=name
    )
    if self.mlp != 'mlp':
      return SwiGLU(**fields, use_bias=self.out_bias)(x, train)
    fields['activation'] = self.activation
    if self.inner_norm:
      return SubNormMlp(**fields, norm=self._norm)(x, train)
    init = INITIALIZERS[self.init_style]
    return MlpBlock(
      **fields,
      kernel_init=init.kernel,
      bias_init=init.mlp_bias(x.shape[-1]),
      bias_init_out=init.mlp_bias(self.mlp_dim),
    )(x, train)

  def intermediates(
    self, x: jax.Array, probs: jax.Array
  ) -> dict[str, jax.Array]:
    """What the block returns beside its tokens x (B, T, D)."""
    aux = {'tokens': x}
    if self.return_attention:
      aux['attention'] = probs
    return aux


class PostNormBlock(TowerBlock):
  """x + norm(attention(x)), then x + norm(MLP(x)) (arXiv:2111.09883)."""

  @nn.compact
  def __call__(
    self, x: jax.Array, rate: float | jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See `TowerBlock`."""
    y, probs = self.attention('MultiHeadDotProductAttention_0', x, train)
    x = x + DropPath()(self.normalize('LayerNorm_0', y), rate, train)
    y = self.mlp_branch('MlpBlock_0', x, train)
    x = x + DropPath()(self.normalize('LayerNorm_1', y), rate, train)
    return x, self.intermediates(x, probs)
