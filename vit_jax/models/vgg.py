"""VGG: Very Deep Convolutional Networks (arXiv:1409.1556).

The network has 3x3 convolutions with ReLU, 2x2 max-pools, and three dense
layers whose input is a 7x7 map. torchvision and timm agree for images of
224x224, which give such a map. For larger maps, torchvision averages the map to
7x7, and timm applies the first two dense layers at every 7x7 window and
averages the features. In the variants with BatchNorm there is one after each
convolution, which keeps its bias. VGGs are here to be compared with
transformers.

B batch, (H, W) image, C channels.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from vit_jax.models.blocks import check_field
from vit_jax.models.convnet import ConvLayers, fan_out_normal
from vit_jax.models.dropout import Dropout
from vit_jax.models.heads import classify, global_mean
from vit_jax.models.max_pool import max_pool
from vit_jax.models.registry import register
from vit_jax.models.tpu_layout import split_batch
from vit_jax.preprocessing import Preprocessing

# Table 1, columns A, B, D, E: convolutions of each stage, which have 64, 128,
# 256, 512 and 512 channels.
SIZES = {
  '11': (1, 1, 2, 2, 2),
  '13': (2, 2, 2, 2, 2),
  '16': (2, 2, 3, 3, 3),
  '19': (2, 2, 4, 4, 4),
}
HEADS = ('torchvision', 'timm')
MAP = 7  # side of the map that the dense layers take


def adaptive_matrix(old: int, new: int) -> np.ndarray:
  """PyTorch's adaptive average pooling along one axis, as a matrix.

  Entry i of the result is the mean of the entries floor(i * old / new) to
  ceil((i + 1) * old / new) - 1, so neighbors may share entries.

  Args:
    old, new: lengths of the axis before and after.

  Returns:
    float32 (new, old).
  """
  matrix = np.zeros((new, old), np.float32)
  for i in range(new):
    first, end = i * old // new, -(-(i + 1) * old // new)
    matrix[i, first:end] = 1 / (end - first)
  return matrix


def adaptive_mean(x: jax.Array, height: int, width: int) -> jax.Array:
  """Adaptive average pooling, (B, H, W, C) -> (B, height, width, C)."""
  if x.shape[1:3] == (height, width):
    return x
  rows = adaptive_matrix(x.shape[1], height)
  columns = adaptive_matrix(x.shape[2], width)
  y = jnp.einsum('yh,xw,bhwc->byxc', rows, columns, x.astype(jnp.float32))
  return y.astype(x.dtype)


class VGG(nn.Module):
  """VGG, with or without BatchNorm.

  Attributes:
    num_classes: size of the head; 0 for no head (logits are pre_logits).
    stages: channels of each convolution, stage by stage; a max-pool ends each
      stage.
    batch_norm: whether a BatchNorm follows each convolution.
    hidden: width of the two dense layers.
    head_style: one of HEADS; it says what happens to maps that are not 7x7, and
      how the dense layers are initialized.
    dropout: rate after both dense layers; 0.5 in the paper.
    bn_groups: groups of the batch with BatchNorm statistics of their own.
    dtype: dtype of the activations; the head is float32.
  """

  num_classes: int = 1000
  stages: Sequence[Sequence[int]] = (
    (64,) * 2,
    (128,) * 2,
    (256,) * 3,
    (512,) * 3,
    (512,) * 3,
  )
  batch_norm: bool = False
  hidden: int = 4096
  head_style: str = 'torchvision'
  dropout: float = 0.0
  bn_groups: int = 1
  dtype: DTypeLike = jnp.float32

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
      logits (B, num_classes), float32, and intermediates: 'conv1' after its
      ReLU, 'block{s}' (B, H / 2**s, W / 2**s, C) after each max-pool,
      'pre_logits_2d', the map that the dense layers take, and 'pre_logits'
      (B, hidden). Odd sizes are rounded down.

    Raises:
      ValueError: unknown `head_style`, or an image smaller than 2**stages.
    """
    self._check(*images.shape[1:3])
    layers = ConvLayers(jnp.dtype(self.dtype), self.bn_groups)
    dropout = functools.partial(Dropout, deterministic=not train)
    x, out, i = images, {}, 0
    for s, stage in enumerate(self.stages, start=1):
      for width in stage:
        i += 1
        x = layers.conv(x, width, 3, use_bias=True, name=f'conv{i}')
        if self.batch_norm:
          x = layers.norm(x, train, name=f'norm{i}')
        x = nn.relu(x)
        if i == 1:
          out['conv1'] = x
      x = out[f'block{s}'] = split_batch(max_pool(x, (2, 2), (2, 2)))
    x = out['pre_logits_2d'] = self._pool(x)
    # The first dense layer as a convolution: on a 7x7 map it has one position.
    x = nn.relu(
      nn.Conv(
        self.hidden,
        (MAP, MAP),
        padding='VALID',
        dtype=layers.dtype,
        kernel_init=self._hidden_init(),
        name='fc1',
      )(x)
    )
    x = dropout(self.dropout)(x)
    x = nn.relu(
      nn.Dense(
        self.hidden,
        dtype=layers.dtype,
        kernel_init=self._hidden_init(),
        name='fc2',
      )(x)
    )
    x = dropout(self.dropout)(x)
    x = out['pre_logits'] = global_mean(x)
    kernel_init = nn.initializers.normal(0.01)
    return classify(x, self.num_classes, kernel_init=kernel_init), out

  def _pool(self, x: jax.Array) -> jax.Array:
    """The map for the dense layers: 7x7, or larger with timm's head."""
    if self.head_style == 'torchvision':
      return adaptive_mean(x, MAP, MAP)
    return adaptive_mean(x, max(MAP, x.shape[1]), max(MAP, x.shape[2]))

  def _hidden_init(self) -> nn.initializers.Initializer:
    """N(0, 0.01) as in torchvision, or as timm initializes convolutions."""
    if self.head_style == 'torchvision':
      return nn.initializers.normal(0.01)
    return fan_out_normal()

  def _check(self, height: int, width: int) -> None:
    check_field('head_style', self.head_style, HEADS)
    if min(height, width) < 2 ** len(self.stages):
      raise ValueError(
        f'an image of {height}x{width} is smaller than '
        f'{2 ** len(self.stages)} pixels, the stride of {len(self.stages)} '
        'max-pools: use a larger image_size'
      )


for _size, _counts in SIZES.items():
  for _norm in (False, True):
    _name = f'vgg{_size}{"_bn" if _norm else ""}'
    register(
      _name,
      VGG,
      preprocessing=Preprocessing(
        crop=0.875,
        interpolation='bilinear_antialias',
        normalize='imagenet',
      ),
      released=(f'{_name}.tv_in1k',),
      role='comparator',
      stages=tuple(
        (width,) * count
        for width, count in zip((64, 128, 256, 512, 512), _counts, strict=True)
      ),
      batch_norm=_norm,
    )
