"""Every family under the one trainer: FSDP and scan, bfloat16 as float32."""

import json

import jax
import numpy as np
import pytest

from tests.helpers import tiny_config
from vit_jax import train
from vit_jax.recipe import shared
from vit_jax.weights.steps import load_params

SMALL = dict(patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32)
FAMILIES = {
  'vit': dict(SMALL, name='vit_ti16'),
  'area': dict(SMALL, name='aa_vit_ti16', area_sizes=((1, 2),)),
  'hybrid': {
    'name': 'r26_vit_s32',
    **SMALL,
    **shared.small_fields('r26_vit_s32'),
    'width': 16,
  },
  'bit': dict(name='bit_r50x1', num_layers=(1, 1), width_factor=0.5),
  'mixer': dict(
    name='mixer_s16',
    patch_size=8,
    width=16,
    depth=2,
    tokens_mlp_dim=8,
    mlp_dim=32,
  ),
  'deit': dict(SMALL, name='deit_ti16_distilled'),
  'deepvit': dict(SMALL, name='deepvit_16'),
  'cait': dict(SMALL, name='cait_xxs24', cls_depth=1),
  'ceit': dict(SMALL, name='ceit_t', stem_width=8),
  'volo': dict(
    name='volo_d1',
    patch_size=4,
    layers=(1, 2),
    embed_dims=(8, 16),
    num_heads=(2, 2),
    mlp_ratios=(2, 2),
    outlook_attention=(True, False),
    downsamples=(True, False),
    post_layers=('ca',),
    stem_hidden_dim=4,
  ),
}
SCAN = ('vit', 'area', 'deit', 'deepvit', 'cait', 'ceit', 'volo')
GROUPS = ('ceit', 'deepvit', 'volo')  # BatchNorm: statistics per device


def recipe(family, fields=(), **sections):
  config = tiny_config(data=dict(image_size=32), **sections)
  config.model = {**FAMILIES[family], **dict(fields)}
  return config


def losses_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.array(
    [line['loss'] for line in map(json.loads, lines) if 'loss' in line]
  )


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_trains_with_fsdp_and_scan(family, tmp_path):
  """On 8 devices; with BatchNorm, its statistics are moved and saved."""
  assert jax.device_count() == 8
  fields = {'scan': True} if family in SCAN else {}
  fields |= {'bn_groups': 8} if family in GROUPS else {}
  config = recipe(
    family,
    fields,
    mesh=dict(preset='fsdp'),
    run=dict(steps=4),
    optim=dict(lr=3e-3),
  )
  summary = train.train_and_evaluate(config, str(tmp_path))
  assert summary['step'] == 4 and np.isfinite(losses_of(tmp_path)).all()
  variables, _ = load_params(tmp_path)
  means = [
    x
    for k, x in variables.items()
    if k.startswith('batch_stats') and k.endswith('mean')
  ]
  assert bool(means) == (family in GROUPS)
  assert all(np.abs(m).max() > 0 for m in means)


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_trains_like_float32(family, tmp_path):
  """Loss curves over 50 steps stay within 5 % of the first loss."""
  curves = []
  for dtype in ('float32', 'bfloat16'):
    config = recipe(
      family, run=dict(steps=50, dtype=dtype), optim=dict(lr=1e-3)
    )
    train.train_and_evaluate(config, str(tmp_path / dtype))
    curves.append(losses_of(tmp_path / dtype))
  a, b = curves
  assert len(a) == 50 and a[-5:].mean() < a[:5].mean()
  assert np.abs(a - b).max() < 0.05 * a[0]
