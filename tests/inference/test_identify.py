"""Which model a file is for: its name, its config.json, its tensors."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.inference import describe
from vit_jax.inference.identify import fields_of_format, identify
from vit_jax.inference.loading import load_classifier
from vit_jax.models.registry import create_model, released_model
from vit_jax.weights import (
  WeightsError,
  WeightsMetadata,
  from_state_dict,
  read,
  released_shapes,
  to_state_dict,
)

TINY = dict(width=8, depth=1, num_heads=2, mlp_dim=8, patch_size=16)


def names_of(model, fmt='timm'):
  """The names of a model's file with arrays that take no memory."""
  shapes = released_shapes(create_model(model), 224, fmt)
  return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}


def weights(model, fmt):
  images = np.zeros((1, 32, 32, 3), np.float32)
  variables = model.init(jax.random.key(0), images, train=False)
  return variables, to_state_dict(variables, model, fmt)


@pytest.mark.parametrize(
  'source,name',
  [
    ('a/ViT-B_16.npz', 'vit_b16'),
    ('a/R50+ViT-B_16.npz', 'r50_vit_b16'),
    ('Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03.npz', 'vit_ti16'),
    ('deit_small_patch16_224-cd65a155.pth', 'deit_s16'),
    ('vit_tiny_patch16_224.safetensors', 'vit_tiny_patch16_224'),
    (
      'hf:timm/vit_base_patch16_clip_224.openai',
      'vit_base_patch16_clip_224.openai',
    ),
    (
      'd/deit3_small_patch16_224.fb_in1k.bin',
      'deit3_small_patch16_224.fb_in1k',
    ),
    ('model.safetensors', None),
  ],
)
def test_published_names(source, name):
  assert released_model(source) == name


def test_the_folder_counts_for_a_file_without_a_name_of_its_own():
  source = 'hub/vit_small_patch32_224.augreg_in21k/model.safetensors'
  found = identify(source, {}, WeightsMetadata())
  assert found.name == 'vit_small_patch32_224.augreg_in21k'


def test_area_attention_is_taken_only_for_its_own_files(monkeypatch):
  fitting = ['aa_vit_ti16', 'deit_ti16', 'vit_ti16']
  monkeypatch.setattr(describe, 'matching_models', lambda *_, **__: fitting)
  nothing = WeightsMetadata()
  with pytest.raises(WeightsError, match='fit deit_ti16, vit_ti16, which diff'):
    identify('x.pth', {'cls_token': 0}, nothing)
  fitting.remove('deit_ti16')
  assert identify('x.pth', {'cls_token': 0}, nothing).name == 'vit_ti16'
  fitting.remove('vit_ti16')
  assert identify('x.pth', {'cls_token': 0}, nothing).name == 'aa_vit_ti16'


@pytest.mark.slow
def test_the_tensors_of_volo_tell_their_model():
  volo = names_of('volo_d1', 'official')
  candidates = ['vit_s16', 'volo_d1', 'volo_d2']
  assert describe.matching_models(volo, names=candidates) == ['volo_d1']


def test_the_only_model_that_fits_needs_no_name(monkeypatch):
  monkeypatch.setattr(describe, 'matching_models', lambda *_, **__: ['vit_l32'])
  assert identify('x.pth', {'a': 0}, WeightsMetadata()).name == 'vit_l32'


def test_few_models_are_traced_for_a_file_without_a_name(monkeypatch):
  """Tracing takes a second; sizes alone rule out most models."""
  shapes = {
    'embedding/kernel': (16, 16, 3, 192),
    'Transformer/posembed_input/pos_embedding': (1, 197, 192),
    'Transformer/encoderblock_11/MlpBlock_3/Dense_0/kernel': (192, 768),
    'Transformer/encoderblock_11/MlpBlock_3/Dense_0/bias': (768,),
    'Transformer/others/kernel': (5_000_000,),
    'head/kernel': (192, 3),
  }
  arrays = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
  traced = []
  monkeypatch.setattr(describe, '_check', lambda name, *_: traced.append(name))
  describe.matching_models(arrays)
  assert 'vit_ti16' in traced and len(traced) < 8, traced


@pytest.fixture
def entry(tmp_path):
  """A folder as timm's entries on the hub are."""
  model = create_model('vit_tiny_patch16_224', 3, **TINY)
  variables, arrays = weights(model, 'timm')
  save_file(arrays, tmp_path / 'model.safetensors')
  config = {
    'architecture': 'vit_tiny_patch16_224',
    'label_names': ['ant', 'bee', 'cat'],
    'pretrained_cfg': {
      'tag': 'mine',
      'input_size': [3, 32, 32],
      'interpolation': 'bilinear',
      'crop_pct': 0.75,
      'mean': [0.5, 0.5, 0.5],
      'std': [0.5, 0.5, 0.25],
    },
    'model_args': {'depth': 1, 'embed_dim': 8, 'num_heads': 2, 'img_size': 32},
  }
  return tmp_path, config, variables


def test_the_config_of_timm(entry):
  folder, config, variables = entry
  (folder / 'config.json').write_text(json.dumps(config))
  for source in (folder, folder / 'model.safetensors'):
    classifier = load_classifier(source, fields={'mlp_dim': 8})
    jax.tree.map(
      np.testing.assert_array_equal, classifier.variables, dict(variables)
    )
  assert classifier.name == 'vit_tiny_patch16_224.mine'
  assert classifier.classes == ['ant', 'bee', 'cat']
  feeding = classifier.preprocessing
  assert feeding.size == (32, 32) and feeding.crop == 0.75
  assert feeding.interpolation == 'bilinear_antialias'
  assert feeding.normalize == 'mean_std(0.5,0.5,0.5,0.5,0.5,0.25)'
  assert classifier.model.activation == 'gelu_erf'
  config['model_args']['block_fn'] = 'x'
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(WeightsError, match="by 'block_fn'.*--model"):
    load_classifier(folder)


def test_patches_that_do_not_divide_the_image(entry):
  """The table of positions is for 2 x 2 patches: 32 to 47 pixels."""
  folder, config, _ = entry
  config['pretrained_cfg']['input_size'] = [3, 40, 40]
  (folder / 'config.json').write_text(json.dumps(config))
  load = lambda **kw: load_classifier(folder, fields={'mlp_dim': 8}, **kw)
  assert load().preprocessing.size == (40, 40)
  assert load(image_size=48).preprocessing.size == (48, 48)
  config['pretrained_cfg']['input_size'] = [3, 48, 48]
  (folder / 'config.json').write_text(json.dumps(config))
  assert load().preprocessing.size == (32, 32)


def test_hybrids_have_the_stem_of_their_code():
  """timm adds other epsilons in the stem, which change logits by 1e-3."""
  assert create_model('vit_base_r50_s16_224').stem_style == 'timm'
  assert create_model('r50_vit_b16').stem_style == 'google'
  assert fields_of_format('r50_vit_b16', 'timm') == {
    'activation': 'gelu_erf',
    'stem_style': 'timm',
  }
  assert fields_of_format('vit_b16', 'timm') == {'activation': 'gelu_erf'}
  assert not fields_of_format('vit_base_r50_s16_224', 'timm')


def test_a_file_of_timm_has_timms_activation(entry):
  folder, _, _ = entry
  load = lambda **fields: load_classifier(
    folder, model='vit_ti16', fields={**TINY, **fields}
  )
  assert load().fields['activation'] == 'gelu_erf'
  assert load(activation='gelu_tanh').model.activation == 'gelu_tanh'


def test_the_configs_of_transformers(tmp_path):
  model = create_model('vit_b16', 2, **TINY)
  variables, arrays = weights(model, 'transformers')
  assert 'encoder.layer.0.attention.attention.query.weight' in arrays
  arrays = {
    ('' if k.startswith('classifier') else 'vit.') + k: x
    for k, x in arrays.items()
  }
  first = dict(list(arrays.items())[:5])
  second = dict(list(arrays.items())[5:])
  save_file(first, tmp_path / 'model-00001-of-00002.safetensors')
  save_file(second, tmp_path / 'model-00002-of-00002.safetensors')
  index = {
    'weight_map': {
      k: f'model-0000{1 + (k in second)}-of-00002.safetensors' for k in arrays
    }
  }
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  config = {
    'model_type': 'vit',
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 8,
    'patch_size': 16,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
    'id2label': {'1': 'bee', '0': 'ant'},
  }
  feeding = {'size': {'height': 32, 'width': 32}, 'resample': 3}
  feeding |= {'image_mean': [0, 0, 0], 'image_std': [1, 1, 1]}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(feeding))
  classifier = load_classifier(tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal, classifier.variables, dict(variables)
  )
  assert classifier.model.norm_eps == 1e-12
  assert classifier.model.activation == 'gelu_erf'
  assert classifier.classes == ['ant', 'bee']
  assert classifier.preprocessing.normalize == 'unit'
  assert classifier.preprocessing.interpolation == 'bicubic'
  (tmp_path / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(WeightsError, match='1 of its 2 shards are missing'):
    read(tmp_path / 'model.safetensors.index.json')


def test_names_of_transformers_5_and_of_mae():
  model = create_model('vit_b16', 0, **TINY)
  variables, arrays = weights(model, 'transformers5')
  assert 'layers.0.attention.q_proj.weight' in arrays
  arrays = {f'vit.{k}': x for k, x in arrays.items()}
  arrays['decoder.decoder_pred.weight'] = np.zeros((3, 3), np.float32)
  loaded, report = from_state_dict(model, arrays, 32)
  jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))
  assert [r.name for r in report.dropped] == ['decoder.decoder_pred.weight']
