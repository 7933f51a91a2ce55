"""Complete lists of names and shapes of released files, without arrays."""

import numpy as np
import pytest

from tests.released import NAMES, tsv_shapes
from vit_jax.models.registry import create_model, list_models
from vit_jax.weights import (
  from_state_dict,
  known_formats,
  released_shapes,
  resembles,
)

# {file of names: (format, model, fields)}
REP = {'representation_size': 768}
FILES = {
  'vit_jax_ViT-Ti_16_i1k': ('npz', 'vit_ti16', {}),
  'vit_jax_ViT-B_16_i1k': ('npz', 'vit_b16', {}),
  'vit_jax_ViT-B_16_i21k': ('npz', 'vit_b16', {'num_classes': 21843, **REP}),
  'vit_jax_ViT-Ti_16_augreg_i21k': ('npz', 'vit_ti16', {'num_classes': 21843}),
  'vit_jax_ViT-B_16_augreg_i21k': ('npz', 'vit_b16', {'num_classes': 21843}),
  'vit_jax_R50+ViT-B_16_i1k': ('npz', 'r50_vit_b16', {}),
  'vit_jax_R50+ViT-B_16_i21k': (
    'npz',
    'r50_vit_b16',
    {'num_classes': 21843, **REP},
  ),
  'vit_jax_Mixer-B_16_i1k': ('npz', 'mixer_b16', {}),
  'vit_jax_Mixer-B_16_i21k': ('npz', 'mixer_b16', {'num_classes': 21843}),
  'big_vision_ViT-B_16_map_rep': (
    'big_vision',
    'vit_b16',
    {'pool': 'map', **REP},
  ),
  'big_vision_ViT-S_16_gap_sincos': (
    'big_vision',
    'vit_s16',
    {'pool': 'gap', 'posemb': 'sincos2d'},
  ),
  'big_vision_ViT-B_16_tok': ('big_vision', 'vit_b16', {}),
  'bit_BiT-M-R50x1_npz': ('npz', 'bit_r50x1', {'num_classes': 21843}),
  'bit_BiT-S-R50x1_npz': ('npz', 'bit_r50x1', {}),
  'big_transfer_BiT-M-R50x1': ('official', 'bit_r50x1', {'num_classes': 21843}),
  'timm_resnetv2_50x1_bit_i1k': ('timm', 'bit_r50x1', {}),
  'timm_resnetv2_50x1_bit_i21k': ('timm', 'bit_r50x1', {'num_classes': 21843}),
  'timm_mixer_b16_224': ('timm', 'mixer_b16', {}),
  'timm_vit_tiny_patch16_224': ('timm', 'vit_ti16', {}),
  'timm_vit_base_patch16_224': ('timm', 'vit_b16', {}),
  'timm_vit_base_r50_s16_224': ('timm', 'r50_vit_b16', {}),
}


@pytest.mark.parametrize('file', FILES)
def test_produces_and_consumes_exactly(file):
  fmt, name, fields = FILES[file]
  model = create_model(name, **fields)
  want = tsv_shapes(file)
  assert released_shapes(model, 224, fmt) == want

  # Broadcasting one value gives arrays that take no memory.
  arrays = {k: np.broadcast_to(np.float32(0), s) for k, s in want.items()}
  _, report = from_state_dict(model, arrays, 224)
  assert {e.name for e in report.records} == {
    k.removeprefix('params/') for k in want
  }
  assert all(e.action == 'loaded' for e in report.records), str(report)


GOOGLE = ('npz', 'big_vision', 'timm', 'flax')


@pytest.mark.parametrize(
  'name,fields,formats',
  [
    ('r_vit_ti16', {'depth': 2}, GOOGLE),
    ('r26_vit_s32', {'depth': 2, 'stem': (1, 2)}, GOOGLE),
    ('aa_vit_ti16', {'depth': 3}, (*GOOGLE, 'official')),
    ('vit_s14', {'depth': 2, 'layer_scale': 1.0, 'num_classes': 0}, GOOGLE),
    (
      'vit_s16',
      {'depth': 2, 'pool': 'gap', 'class_token': True, 'norm_after_pool': True},
      GOOGLE,
    ),
    ('vit_s16', {'depth': 2, 'pool': 'map'}, GOOGLE),
    (
      'vit_s16',
      {'depth': 2, 'posemb': 'learn2d'},
      ('npz', 'big_vision', 'flax'),
    ),
    ('mixer_s16', {'depth': 2}, ('npz', 'legacy', 'timm', 'flax')),
    ('bit_r50x1', {'num_layers': (1, 2)}, ('npz', 'official', 'timm', 'flax')),
  ],
)
def test_every_format_is_detected_by_its_names(name, fields, formats):
  model = create_model(name, **fields)
  assert set(formats) <= set(known_formats(model))
  for fmt in formats:
    shapes = released_shapes(model, 224, fmt)
    arrays = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    _, report = from_state_dict(model, arrays, 224)
    assert {e.action for e in report.records} == {'loaded'}, (fmt, str(report))
    assert {e.name for e in report.records} == {
      k.removeprefix('params/') for k in shapes
    }


def test_root_only_hybrid_has_timms_other_names():
  names = released_shapes(create_model('r_vit_ti16', depth=1), 224, 'timm')
  assert names['patch_embed.backbone.conv.weight'] == (64, 3, 7, 7)
  assert names['pos_embed'] == (1, 50, 192)
  model = create_model('r26_vit_s32', depth=1, stem=(1,))
  assert 'patch_embed.backbone.stem.conv.weight' in released_shapes(
    model, 224, 'timm'
  )


@pytest.mark.parametrize('file', sorted(p.stem for p in NAMES.glob('*_*.tsv')))
def test_names_alone_rule_out_other_architectures(file):
  """The names of PyTorch files exclude most families without a trace."""
  names = tsv_shapes(file)
  if any(name.endswith('kernel') for name in names):
    return  # files with Flax names are possible for every model
  families = {
    model.__class__.__name__
    for model in map(create_model, list_models())
    if resembles(model, names)
  }
  convolutional = {'ResNet', 'RegNetY', 'EfficientNet', 'VGG', 'DenseNet'}
  own = families & convolutional
  if file.startswith(('regnety', 'tf_efficientnet', 'vgg')):
    assert len(own) == 1 and families == own
  else:
    assert families and not own


@pytest.mark.parametrize(
  'name', ['resnet18', 'regnety_040', 'efficientnet_b0', 'vgg11', 'densenet121']
)
def test_flax_names_resemble_their_own_convolutional_network(name):
  """The names of a converted file, which are the paths of the parameters."""
  model = create_model(name)
  assert resembles(model, released_shapes(model, 64, 'flax'))
  for other in ('vit_ti16', 'mixer_s16', 'bit_r50x1'):
    shapes = released_shapes(create_model(other), 64, 'npz')
    assert not resembles(model, shapes), other
