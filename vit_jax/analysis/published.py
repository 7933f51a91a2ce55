"""Published accuracies and parameter counts of the registered models.

One table for all: top-1 on the validation set of ImageNet as the authors (or
timm, for released weights) report it. Where a published number of parameters is
for other classes than ImageNet's 1,000, the row says for which.
"""

from collections.abc import Iterator
import dataclasses

from vit_jax.models.registry import model_info


@dataclasses.dataclass(frozen=True)
class Published:
  """One published result.

  Attributes:
    model: registered name.
    size: side of the test images in pixels.
    top1: accuracy in per cent; None if there is only a parameter count.
    data: training data besides ImageNet-1k.
    parameters: published number of parameters in millions.
    counted_for: (classes, input channels) of that number.
    v100: published images per second on a V100.
    source: where the numbers are published.
  """

  model: str
  size: int
  top1: float | None
  data: str = ''
  parameters: float | None = None
  counted_for: tuple[int, int] = (1000, 3)
  v100: float | None = None
  source: str = ''

  def parameters_text(self) -> str:
    """'23.9 (101 classes, 48 input channels)', or '' without a number."""
    if self.parameters is None:
      return ''
    classes, channels = self.counted_for
    notes = [f'{classes} classes'] * (classes != 1000)
    notes += [f'{channels} input channels'] * (channels != 3)
    return f'{self.parameters:g}' + (f' ({", ".join(notes)})' if notes else '')


# 5-shot accuracy on ImageNet in per cent of ViT-B/16 pre-trained on JFT, for
# each (model.posemb, model.posemb_at): arXiv:2010.11929, table 8.
POSITIONS = {
  ('none', 'stem'): 61.382,
  ('learn1d', 'stem'): 64.206,
  ('learn1d', 'every_layer'): 63.964,
  ('learn1d', 'every_layer_shared'): 64.292,
  ('learn2d', 'stem'): 64.001,
  ('learn2d', 'every_layer'): 64.046,
  ('learn2d', 'every_layer_shared'): 64.022,
  ('relative', 'stem'): 64.032,
}

_DEIT = 'arXiv:2012.12877, table 5'
_TIMM = "timm's table of results"
_TPU = 'tensorflow/tpu, models/official/efficientnet'
_VIT = 'arXiv:2010.11929'
# Leong et al., 2020: 16 frames of video stacked, and the classes of UCF-101.
# Both follow from the counts; the table does not print them.
_VIDEO = 'comparison of 2-D CNNs by Leong et al., 2020'

# model, px, top-1, parameters in millions, images per second on a V100.
_DEIT_TABLE = """
  resnet18                224  69.8   12  4458.4
  resnet50                224  76.2   25  1226.1
  resnet101               224  77.4   45   753.6
  resnet152               224  78.3   60   526.4
  regnety_040             224  80.0   21  1156.7
  regnety_080             224  81.7   39   591.6
  regnety_160             224  82.9   84   334.7
  tf_efficientnet_b0      224  77.1    5  2694.3
  tf_efficientnet_b1      240  79.1    8  1662.5
  tf_efficientnet_b2      260  80.1    9  1255.7
  tf_efficientnet_b3      300  81.6   12   732.1
  tf_efficientnet_b4      380  82.9   19   349.4
  tf_efficientnet_b5      456  83.6   30   169.1
  tf_efficientnet_b6      528  84.0   43    96.9
  tf_efficientnet_b7      600  84.3   66    55.1
  vit_b16                 384  77.9   86    85.9
  vit_l16                 384  76.5  307    27.3
  deit_ti16               224  72.2    5  2536.5
  deit_s16                224  79.8   22   940.4
  deit_b16                224  81.8   86   292.3
  deit_b16_384            384  83.1   86    85.9
  deit_ti16_distilled     224  74.5    6  2529.5
  deit_s16_distilled      224  81.2   22   936.2
  deit_b16_distilled      224  83.4   87   290.9
  deit_b16_distilled_384  384  84.5   87    85.8
"""
# model, px, top-1, the source, and data besides ImageNet-1k.
_OTHERS: tuple[tuple[str, str, str], ...] = (
  (
    _TIMM,
    '',
    """
    resnet34 224 73.30
    vgg11 224 69.05
    vgg13 224 69.95
    vgg16 224 71.59
    vgg19 224 72.40
    vgg11_bn 224 70.37
    vgg13_bn 224 71.56
    vgg16_bn 224 73.35
    vgg19_bn 224 74.23
    densenet121 224 74.75
    densenet169 224 75.92
    densenet201 224 77.28
    regnety_080_tv 224 82.58
    regnety_320 224 80.80
    """,
  ),
  (
    _TPU,
    'JFT-300M without labels',
    """
    tf_efficientnet_b0 224 78.8
    tf_efficientnet_b1 240 81.5
    tf_efficientnet_b2 260 82.4
    tf_efficientnet_b3 300 84.1
    tf_efficientnet_b4 380 85.3
    tf_efficientnet_b5 456 86.1
    tf_efficientnet_b6 528 86.4
    tf_efficientnet_b7 600 86.9
    tf_efficientnet_l2 475 88.2
    tf_efficientnet_l2 800 88.4
    """,
  ),
  (_VIT, 'JFT-300M', 'vit_h14 518 88.55\nvit_l16 512 87.76'),
  (
    f'{_VIT}; README of google-research/vision_transformer',
    'ImageNet-21k',
    """
    vit_l16 512 85.30
    vit_b32 384 81.66
    vit_b16 384 84.53
    vit_l32 384 81.89
    r50_vit_b16 384 83.72
    """,
  ),
  ('arXiv:2106.04560', 'JFT-3B', 'vit_G14 518 90.45'),
  (
    'arXiv:1912.11370; README of google-research/big_transfer',
    'ImageNet-21k',
    'bit_r50x1 480 80.68\nbit_r152x2 480 85.15',
  ),
  ('arXiv:1912.11370', 'JFT-300M', 'bit_r152x4 480 87.54'),
  (
    'google-research/big_vision, configs/mlp_mixer_i1k.py',
    '',
    'mixer_b16 224 76.3',
  ),
  (
    'arXiv:2103.17239, table 3',
    '',
    """
    cait_xxs24 224 77.6
    cait_xxs36 224 79.1
    cait_s24 224 82.7
    cait_s36 224 83.3
    cait_s48 224 83.5
    cait_m24 224 83.4
    cait_m36 224 83.8
    cait_xs24 224 81.8
    cait_xs36 224 82.6
    """,
  ),
  (
    'README of facebookresearch/deit',
    '',
    'cait_xs24 384 84.1\ncait_m36 384 86.1\ncait_m48 448 86.5',
  ),
  (
    'arXiv:2103.11816, table 6',
    '',
    """
    ceit_t 224 76.4
    ceit_t 384 78.8
    ceit_s 224 82.0
    ceit_s 384 83.3
    """,
  ),
  ('README of coeusguo/ceit', '', 'ceit_b 224 81.9'),
  (
    'README of zhoudaquan/dvit_repo',
    '',
    """
    deepvit_16 224 79.10
    deepvit_24 224 79.99
    deepvit_32 224 80.90
    deepvit_s 224 82.3
    deepvit_l 224 83.1
    """,
  ),
  (
    'README of sail-sg/volo',
    '',
    """
    volo_d1 224 84.2
    volo_d1 384 85.2
    volo_d2 224 85.2
    volo_d2 384 86.0
    volo_d3 224 85.4
    volo_d3 448 86.3
    volo_d4 224 85.7
    volo_d4 448 86.8
    volo_d5 224 86.1
    volo_d5 512 87.1
    """,
  ),
)
_VIDEO_COUNTS = """
  vgg16       134.7
  resnet18     11.4
  resnet34     21.5
  resnet50     23.9
  resnet101    42.8
  resnet152    58.5
  densenet121   7.2
  densenet169  12.8
"""


def _rows() -> Iterator[Published]:
  for line in _DEIT_TABLE.split('\n'):
    if cells := line.split():
      name, size, top1, parameters, speed = cells
      yield Published(
        name,
        int(size),
        float(top1),
        parameters=float(parameters),
        v100=float(speed),
        source=_DEIT,
      )
  for source, data, text in _OTHERS:
    for line in text.split('\n'):
      if cells := line.split():
        name, size, top1 = cells
        yield Published(name, int(size), float(top1), data=data, source=source)
  for line in _VIDEO_COUNTS.split('\n'):
    if cells := line.split():
      name, parameters = cells
      yield Published(
        name,
        model_info(name).preprocessing.size[0],
        None,
        parameters=float(parameters),
        counted_for=(101, 48),
        source=_VIDEO,
      )


def published() -> list[Published]:
  """All published results of registered models."""
  return list(_rows())
