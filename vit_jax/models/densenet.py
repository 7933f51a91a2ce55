"""DenseNet: Densely Connected Convolutional Networks (arXiv:1608.06993).

The form DenseNet-BC: the input of a layer is the concatenation of the block's
input and the outputs of all earlier layers of the block. A layer has two
convolutions: 1x1, with four times the growth rate as its channels, and 3x3,
with the growth rate. A transition after each block but the last halves the
number of channels and both sides of the map. It is here to be compared with
transformers.

B batch, (H, W) image, C channels.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.models.blocks import REMAT, check_field
from vit_jax.models.convnet import ConvLayers, max_pool_3x3
from vit_jax.models.dropout import Dropout
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.initializers import torch_conv_kernel
from vit_jax.models.registry import register
from vit_jax.models.tpu_layout import split_batch
from vit_jax.preprocessing import Preprocessing

# name: (layers per block, growth rate). Table 1.
SIZES = {
  '121': ((6, 12, 24, 16), 32),
  '161': ((6, 12, 36, 24), 48),
  '169': ((6, 12, 32, 32), 32),
  '201': ((6, 12, 48, 32), 32),
}


class Layer(nn.Module):
  """BN, ReLU, 1x1 to 4 * growth channels, BN, ReLU, 3x3 to growth channels."""

  growth: int
  layers: ConvLayers

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """(B, H, W, C) -> (B, H, W, growth), and the output of the 1x1 layer."""
    conv, norm = self.layers.conv, self.layers.norm
    y = nn.relu(norm(x, train, name='norm1'))
    y = hidden = conv(y, 4 * self.growth, 1, name='conv1', kernel_init=_kernel)
    y = nn.relu(norm(y, train, name='norm2'))
    return conv(y, self.growth, 3, name='conv2', kernel_init=_kernel), hidden


# N(0, 2 / fan_in), not truncated.
_kernel = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Block(nn.Module):
  """Layers `layer1`, `layer2`, ..., each with all earlier features as input."""

  num_layers: int
  growth: int
  layers: ConvLayers
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(B, H, W, C) -> (B, H, W, C + num_layers * growth), intermediates."""
    check_field('remat', self.remat, tuple(REMAT))
    cls: Any = Layer
    if self.remat != 'none':
      cls = nn.remat(Layer, policy=REMAT[self.remat], static_argnums=(2,))
    features, out = [x], {}
    for i in range(1, self.num_layers + 1):
      y, hidden = cls(self.growth, self.layers, name=f'layer{i}')(
        jnp.concatenate(features, axis=-1), train
      )
      out |= {f'layer{i}': y, f'layer{i}/conv1': hidden}
      features.append(split_batch(y))
    return jnp.concatenate(features, axis=-1), out


class Transition(nn.Module):
  """BN, ReLU, 1x1 to half the number of channels, 2x2 means at stride 2."""

  layers: ConvLayers

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """(B, H, W, C) -> (B, H / 2, W / 2, C / 2); odd sizes are rounded down."""
    y = nn.relu(self.layers.norm(x, train, name='norm'))
    y = self.layers.conv(
      y, x.shape[-1] // 2, 1, name='conv', kernel_init=_kernel
    )
    return nn.avg_pool(y, (2, 2), (2, 2))


class DenseNet(nn.Module):
  """DenseNet-BC.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    num_layers: layers per block.
    growth: channels that each layer adds.
    stem_width: channels of the stem; None is twice the growth.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    dropout: rate before the head.
    dtype: dtype of the activations; the head is float32.
    remat: key of `blocks.REMAT`, applied to each layer.
  """

  num_classes: int = 1000
  num_layers: Sequence[int] = (6, 12, 24, 16)
  growth: int = 32
  stem_width: int | None = None
  bn_groups: int = 1
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (B, H, W, 3), normalized.
      train: turns dropout on (rng stream 'dropout'), and BatchNorm to the
        batch's statistics (collection 'batch_stats').

    Returns:
      logits (B, num_classes), float32, and intermediates: 'stem' (B, H / 2,
      W / 2, C), 'stem_pool' (B, H / 4, W / 4, C), 'block{b}',
      'block{b}/layer{l}' (growth channels) and 'block{b}/layer{l}/conv1',
      'transition{b}', 'pre_logits_2d' (B, H / 32, W / 32, C) after the last
      norm and its ReLU, 'pre_logits' (B, C).

    Raises:
      ValueError: unknown `remat`.
    """
    layers = ConvLayers(jnp.dtype(self.dtype), self.bn_groups)
    x = layers.conv(
      images,
      self.stem_width or 2 * self.growth,
      7,
      stride=2,
      name='conv_root',
      kernel_init=_kernel,
    )
    x = nn.relu(layers.norm(x, train, name='norm_root'))
    out: dict[str, Any] = {'stem': x}
    x = out['stem_pool'] = max_pool_3x3(x)
    for b, count in enumerate(self.num_layers, start=1):
      x, features = Block(
        count, self.growth, layers, self.remat, name=f'block{b}'
      )(x, train)
      out[f'block{b}'] = x
      out |= {f'block{b}/{name}': y for name, y in features.items()}
      if b < len(self.num_layers):
        x = Transition(layers, name=f'transition{b}')(x, train)
        out[f'transition{b}'] = x
    x = nn.relu(layers.norm(x, train, name='norm_final'))
    out['pre_logits_2d'] = x
    x = out['pre_logits'] = global_mean(x)
    x = Dropout(self.dropout, deterministic=not train)(x)
    return classify(x, self.num_classes, kernel_init=torch_conv_kernel), out


for _size, (_layers, _growth) in SIZES.items():
  register(
    f'densenet{_size}',
    DenseNet,
    preprocessing=Preprocessing(
      crop=0.875,
      interpolation='bilinear_antialias',
      normalize='imagenet',
    ),
    released=(f'densenet{_size}.tv_in1k',),
    role='comparator',
    num_layers=_layers,
    growth=_growth,
  )
