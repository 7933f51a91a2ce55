"""Parity of ResNet, RegNetY, EfficientNet, VGG and DenseNet (timm)."""

from collections.abc import Callable
import re

import jax
import jax.numpy as jnp

from tests.parity.harness import Case, kind
from tests.parity.slices import compare_slices
from vit_jax.models.densenet import DenseNet
from vit_jax.models.efficientnet import EfficientNet
from vit_jax.models.regnet import RegNetY
from vit_jax.models.resnet import ResNet
from vit_jax.models.vgg import VGG
from vit_jax.weights import from_state_dict, to_state_dict

Names = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def compare(case: Case, model, names: Names, fmt: str = 'timm'):
  """Compares an evaluation, and a training pass with its statistics.

  Args:
    case: a file of an image classification network.
    model: the module that its configuration describes.
    names: (regex of a recorded output, its name in the model's `out`).
    fmt: format of the file's parameters.
  """
  images = jnp.asarray(case.inputs['images'])
  variables, _ = from_state_dict(model, case.params, images.shape[1:3], fmt=fmt)
  logits, out = jax.jit(lambda v, x: model.apply(v, x, train=False))(
    variables, images
  )
  values = {'logits': logits, 'pre_logits': out['pre_logits']}
  for key in case.outputs:
    # A suffix behind the last point names a slice, see `slices.take`.
    stem = re.sub(r'\.(spatial_mean|(end)?corner3x3)$', '', key)
    for pattern, name in names:
      if match := re.fullmatch(pattern, stem):
        name = name(match) if callable(name) else match.expand(name)
        values[stem] = out[name]
  compare_slices(case, values)
  if 'train.logits' in case.outputs:
    _compare_training(case, model, variables, images, fmt)


def _compare_training(case: Case, model, variables, images, fmt: str):
  """Logits of a training pass, and the running statistics after it."""
  (logits, _), new = jax.jit(
    lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats'])
  )(variables, images)
  case.compare(
    'train.logits', logits, case.meta['tolerance']['train.logits_atol']
  )
  statistics = to_state_dict({**variables, **new}, model, fmt)
  for key in case.outputs:
    if key.startswith('train.bn/'):
      case.compare(key, statistics[key.removeprefix('train.bn/')])


@kind('timm.ResNet')
def check_resnet(case: Case):
  c = case.config
  model = ResNet(
    num_classes=c['num_classes'],
    num_layers=tuple(c['layers']),
    unit=c['block'],
    width=c['stem_width'],
  )
  compare(
    case,
    model,
    [
      ('stem|stem_pool', r'\g<0>'),
      (
        r'layer(\d)\.block(\d)',
        lambda m: f'block{m[1]}/unit{int(m[2]) + 1}',
      ),
    ],
  )


@kind('timm.RegNet')
def check_regnet(case: Case):
  c = case.config
  model = RegNetY(
    num_classes=c['num_classes'],
    w0=c['w0'],
    wa=c['wa'],
    wm=c['wm'],
    depth=c['depth'],
    group_size=c['group_size'],
    stem_width=c['stem_width'],
    se_ratio=c['se_ratio'],
  )
  compare(
    case,
    model,
    [
      ('stem', r'\g<0>'),
      (r's(\d)\.b(\d)', r'block\1/unit\2'),
      (r'se_gate\.s(\d)\.b(\d)', r'block\1/unit\2/se_gate'),
    ],
  )


@kind('timm.EfficientNet')
def check_efficientnet(case: Case):
  c = case.config
  model = EfficientNet(
    num_classes=c['num_classes'],
    width_multiplier=c['width_multiplier'],
    depth_multiplier=c['depth_multiplier'],
    stages=tuple(
      tuple(
        stage[key]
        for key in ('repeats', 'kernel', 'stride', 'expand', 'channels')
      )
      for stage in c['stages']
    ),
    stem_channels=c['stem_channels'],
    head_channels=c['head_channels'],
    padding=c['padding'],
    bn_epsilon=c['bn_eps'],
    bn_momentum=1 - c['bn_momentum'],
  )
  unit = lambda m: f'block{int(m[1]) + 1}/unit{int(m[2]) + 1}'
  compare(
    case,
    model,
    [
      ('stem', r'\g<0>'),
      ('head', 'pre_logits_2d'),
      (r'blocks\.(\d)\.(\d)', unit),
      (r'se_gate\.blocks\.(\d)\.(\d)', lambda m: f'{unit(m)}/se_gate'),
    ],
  )


@kind('timm.VGG', 'torchvision.VGG')
def check_vgg(case: Case):
  c = case.config
  code = c['kind'].partition('.')[0]
  # The list of channels, with 'M' at the end of each stage.
  stages: list[list[int]] = [[]]
  for entry in c['cfg']:
    if entry == 'M':
      stages.append([])
    else:
      stages[-1].append(entry)
  model = VGG(
    num_classes=c['num_classes'],
    stages=tuple(tuple(stage) for stage in stages if stage),
    batch_norm=c['batch_norm'],
    hidden=c['hidden'],
    head_style=code,
  )
  compare(
    case,
    model,
    [
      ('conv0_act', 'conv1'),
      (r'pool(\d)', r'block\1'),
      ('avgpool7x7', 'pre_logits_2d'),
    ],
    code,
  )


@kind('timm.DenseNet')
def check_densenet(case: Case):
  c = case.config
  model = DenseNet(
    num_classes=c['num_classes'],
    num_layers=tuple(c['block_config']),
    growth=c['growth_rate'],
    stem_width=c['num_init_features'],
  )
  compare(
    case,
    model,
    [
      ('stem|stem_pool', r'\g<0>'),
      ('norm5', 'pre_logits_2d'),
      (r'denseblock(\d)', r'block\1'),
      (r'denseblock(\d)\.denselayer(\d)', r'block\1/layer\2'),
      (
        r'denseblock(\d)\.denselayer(\d)\.conv1',
        r'block\1/layer\2/conv1',
      ),
      (r'transition(\d)', r'\g<0>'),
    ],
  )
