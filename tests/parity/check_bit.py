"""Checkers for BiT of big_transfer, big_vision and timm."""

import re

from tests.parity.check_vit import compare_feature_maps, run
from tests.parity.harness import kind
from vit_jax.models.bit import BiT
from vit_jax.models.hybrid_stem import BiTV1


def compare(case, model, renames):
  """Compares logits and every feature map under its official name.

  `renames`: (regex of the recorded name, name in the model's `out`).
  """
  variables, logits, out = run(case, model)
  maps = {}
  for stem in {name.partition('.')[0] for name in case.outputs}:
    for pattern, name in renames:
      if match := re.fullmatch(pattern, stem):
        maps[stem] = out[name(match) if callable(name) else match.expand(name)]
  compare_feature_maps(case, maps)
  case.compare('logits', logits)
  case.compare('pre_logits', out['pre_logits'])
  if 'logits_2d' in case.outputs:
    head = variables['params']['head']
    case.compare(
      'logits_2d', out['pre_logits_2d'] @ head['kernel'] + head['bias']
    )


@kind('big_vision.BiT')
def check_big_vision_v1(case):
  c = case.config
  model = BiTV1(
    num_classes=c['num_classes'],
    num_layers=tuple(c['depth']),
    width_factor=c['width'],
  )
  compare(
    case,
    model,
    [
      ('stem', 'root'),
      (r'stage(\d+)', r'block\1'),
      ('pre_logits_2d', 'pre_logits_2d'),
    ],
  )


@kind('big_vision.BiT_paper')
def check_big_vision_paper(case):
  c = case.config
  model = BiT(
    num_classes=c['num_classes'],
    num_layers=tuple(c['depth']),
    width_factor=c['width'],
    pool_padding='-inf',
  )
  compare(
    case,
    model,
    [
      ('stem', 'root'),
      (r'stage(\d+)_(unit\d+)', r'block\1/\2'),
      ('norm_pre_head', 'norm_pre_head'),
      ('pre_logits_2d', 'pre_logits_2d'),
    ],
  )


@kind('big_transfer.BiT')
def check_big_transfer(case):
  c = case.config
  # The configuration has no width: the root convolution tells it.
  root = next(v for k, v in case.params.items() if 'root_block' in k)
  model = BiT(
    num_classes=c['num_classes'],
    num_layers=tuple(c['block_units']),
    width_factor=root.shape[-1] / 64,
  )
  compare(case, model, [('root', 'root'), (r'(block\d+)', r'\1')])


@kind('timm.BiT')
def check_timm(case):
  c = case.config
  model = BiT(
    num_classes=c['num_classes'],
    num_layers=tuple(c['layers']),
    root_channels=c['stem_chs'],
    channels=tuple(c['channels']),
    std_eps=1e-8,
  )
  # timm's norm layer includes the ReLU.
  compare(
    case,
    model,
    [
      ('stem', 'root'),
      ('norm', 'pre_logits_2d'),
      (r'stage_(\d+)', lambda m: f'block{int(m[1]) + 1}'),
    ],
  )
