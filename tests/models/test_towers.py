"""Vision towers: timm's logits, kind by kind, and what a tower returns."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from vit_jax.models.registry import create_model, list_models, model_info
from vit_jax.models.resnetv2 import ResNetV2
from vit_jax.models.towers.tower import Tower
from vit_jax.weights import load_pretrained, read, to_state_dict

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'towers'
ROWS = json.loads((FOLDER / 'towers.json').read_text())['towers']
IMAGE = np.sin(np.arange(768, dtype=np.float32) / 7).reshape(1, 16, 16, 3)


TOWERS = [name for name, row in ROWS.items() if row['base'] == 'Tower']
RESNETS = [name for name, row in ROWS.items() if row['base'] == 'ResNetV2']


@pytest.mark.parametrize('name', TOWERS)
def test_logits_of_timm(name):
  """`python -m tests.zoo.fixtures` recorded them."""
  row, file = ROWS[name], FOLDER / f'{name}.safetensors'
  model = Tower(num_classes=3, **row['fields'])
  variables, report = load_pretrained(model, file, 16)
  assert {r.action for r in report.records} == {'loaded'}, str(report)
  logits, out = model.apply(variables, IMAGE, train=False)
  np.testing.assert_allclose(logits[0], row['logits'], atol=4e-6)
  tokens = 4 + model.class_token + model.registers
  assert out['tokens'].shape == (1, tokens, 8)
  again, arrays = to_state_dict(variables, model, 'timm'), read(file).arrays
  assert again.keys() == arrays.keys()
  for key, x in arrays.items():
    np.testing.assert_array_equal(again[key], x, err_msg=key)


@pytest.mark.parametrize('name', RESNETS)
def test_logits_of_timms_resnets(name):
  row = ROWS[name]
  model = ResNetV2(num_classes=3, **row['fields'])
  file = FOLDER / f'{name}.safetensors'
  variables, report = load_pretrained(model, file, 18)
  # PyTorch counts the batches that a BatchNorm has seen.
  assert all('num_batches' in r.name for r in report.dropped), str(report)
  image = np.sin(np.arange(972, dtype=np.float32) / 7).reshape(1, 18, 18, 3)
  run = jax.jit(functools.partial(model.apply, train=False))
  logits, out = run(variables, image)
  np.testing.assert_allclose(logits[0], row['logits'], atol=2e-5)
  assert out['block2'].shape[1:3] == (3, 3)
  arrays = read(file).arrays
  for key, x in to_state_dict(variables, model, 'timm').items():
    np.testing.assert_array_equal(x, arrays[key], err_msg=key)


def test_residual_networks_of_timm():
  shapes = lambda model: jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGE, train=False)
  )
  fewer = dict(num_layers=(1,), num_classes=2)
  groups = shapes(create_model('resnetv2_50d_gn', **fewer))
  assert groups.keys() == {'params'}  # GroupNorm has no running statistics
  assert groups['params']['norm_root2']['scale'].shape == (32,)
  basic = shapes(create_model('resnetv2_18', **fewer))
  assert basic['batch_stats']['norm_head']['mean'].shape == (64,)
  assert 'conv_proj' not in basic['params']['block1']['unit1']
  for field in ('unit', 'stem', 'norm'):
    with pytest.raises(ValueError, match=f"{field}='x'; allowed: "):
      create_model('resnetv2_18', **{field: 'x'}).init(
        jax.random.key(0), IMAGE, train=False
      )


def test_training_scan_and_attention_maps():
  fields = ROWS['registers']['fields']
  model = Tower(num_classes=3, **fields, drop_path=0.5, return_attention=True)
  variables = model.init(jax.random.key(0), IMAGE, train=False)
  run = lambda model, key: model.apply(
    variables, IMAGE, train=True, rngs={'dropout': jax.random.key(key)}
  )
  a, out = run(model, 1)
  b, _ = run(model, 2)
  assert not np.array_equal(a, b)
  assert [x.shape for x in out['attention']] == [(1, 2, 6, 6)] * 2
  scanned = model.clone(scan=True)
  shapes = jax.eval_shape(
    lambda: scanned.init(jax.random.key(0), IMAGE, train=False)
  )
  block = shapes['params']['Transformer']['encoderblock']
  assert block['LayerNorm_0']['scale'].shape == (2, 8)


def test_what_a_tower_refuses():
  init = lambda **fields: Tower(**fields).init(
    jax.random.key(0), IMAGE, train=False
  )
  with pytest.raises(ValueError, match="block='pre'; allowed: pre_norm, "):
    init(block='pre')
  with pytest.raises(ValueError, match="use pool='gap' or 'map'"):
    init(class_token=False)
  with pytest.raises(ValueError, match='use scan=False'):
    init(block='diff', scan=True)


@pytest.mark.parametrize(
  'name', ['', 'timm/', 'hf-hub:timm/', 'hf_hub:timm/', 'hf:timm/']
)
def test_names_of_timm(name):
  info = model_info(f'{name}vit_base_patch16_224.augreg2_in21k_ft_in1k')
  assert info.name == 'vit_base_patch16_224.augreg2_in21k_ft_in1k'
  assert info.fields['activation'] == 'gelu_erf' and info.fields['width'] == 768
  feeding = info.preprocessing
  assert feeding.interpolation == 'bicubic' and feeding.crop == 0.9
  assert feeding.normalize == 'half' and feeding.size == (224, 224)


def test_tags_have_their_own_preprocessing():
  feeding = lambda name: model_info(name).preprocessing
  assert feeding('vit_base_patch32_clip_448.laion2b_ft_in12k_in1k').size == (
    448,
    448,
  )
  assert feeding('vit_base_patch16_224.mae').normalize == 'imagenet'
  assert feeding('vit_base_patch16_224.a_tag_of_later') == feeding(
    'vit_base_patch16_224'
  )
  clip = create_model('vit_base_patch16_clip_quickgelu_224.openai', depth=1)
  assert clip.pre_norm and clip.activation == 'quick_gelu'
  assert clip.norm_eps == 1e-5 and clip.depth == 1
  assert 'vit_base_patch16_224' not in list_models()


def test_models_of_timm_that_are_of_another_family_are_refused_by_name():
  with pytest.raises(ValueError, match="'gmlp_s16_224' is a model of timm"):
    create_model('gmlp_s16_224')
  with pytest.raises(ValueError, match='Did you mean vit_b16'):
    create_model('vit_b16_224')
