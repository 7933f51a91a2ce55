"""Recipes have the published settings, which the docstrings name."""

import jax
import jax.numpy as jnp
import pytest

from configs import (
  aa_vit_cifar10,
  augreg_finetune,
  augreg_i1k,
  augreg_i21k,
  cait_i1k,
  ceit_i1k,
  ceit_transfer,
  deepvit_i1k,
  deit_finetune,
  deit_i1k,
  vit_b16_i1k,
  vit_i21k,
  vit_jft,
  volo_i1k,
)
from tests.helpers import tiny_config
from vit_jax.models.registry import create_model
from vit_jax.parallel.mesh import make_mesh
from vit_jax.recipe.build import build
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import model_fields
from vit_jax.training.rates import parameter_rates


@pytest.mark.parametrize(
  'model, randaugment, mixup, decay, rate',
  [
    ('ti16', '', 0.0, 3e-5, 0.0),
    ('s16', 'google(2,0)', 0.0, 3e-5, 0.0),
    ('b16', 'google(2,15)', 0.2, 1e-4, 0.0),
    ('l16', 'google(2,20)', 0.5, 1e-4, 0.0),
    ('r_vit_ti16', '', 0.0, 3e-5, 0.0),
    ('r26_vit_s32', 'google(2,0)', 0.0, 1e-4, 0.0),
    ('r50_vit_l32', 'google(2,15)', 0.2, 1e-4, 0.1),
    ('b16,strong2', 'google(2,20)', 0.8, 1e-4, 0.0),
    ('s16,wd0.1', 'google(2,0)', 0.0, 1e-4, 0.0),
    ('r50_vit_l32,do0,sd0', 'google(2,15)', 0.2, 1e-4, 0.0),
    ('l16,big_vision', 'google(2,15)', 0.5, 1e-4, 0.0),
  ],
)
def test_augreg_makes_the_recommended_files(
  model, randaugment, mixup, decay, rate
):
  c = augreg_i21k.get_config(model)
  assert (c.data.randaugment, c.data.mixup) == (randaugment, mixup)
  assert c.optim.weight_decay == decay
  assert (c.model.dropout, c.model.drop_path) == (rate, rate)


def test_augreg_without_a_published_level():
  with pytest.raises(ValueError, match='no level .* vit_g14; .* Name a level'):
    augreg_i21k.get_config('g14')
  assert augreg_i21k.get_config('g14,light2').data.mixup == 0.2
  with pytest.raises(ValueError, match='r50_vit_b16'):
    augreg_i1k.get_config('r50_vit_b16')


@pytest.mark.parametrize('recipe', [vit_b16_i1k, vit_i21k, vit_jft])
def test_original_pretraining(recipe):
  c = recipe.get_config('b16')
  assert c.model.representation_size == 768
  assert c.model.head_bias == -10.0
  assert c.loss.name == 'sigmoid' and c.loss.label_range == (0.0001, 0.9999)
  assert c.eval.crop == 224 / 256
  assert c.schedule.warmup_steps == 10_000
  if recipe is not vit_b16_i1k:
    assert (c.schedule.name, c.schedule.end) == ('linear', 1e-5)


def test_jft():
  assert 'pool' not in vit_jft.get_config('h14').model  # the class token
  assert vit_jft.get_config('h14,gap').model.pool == 'gap'
  c = vit_jft.get_config('g14')
  assert (c.optim.name, c.schedule.name) == ('adafactor', 'rsqrt')
  assert (c.data.batch_size, c.run.steps) == (16_384, 1_000_000)
  assert c.model.pool == 'map' and c.schedule.cooldown_steps == 50_000
  assert c.optim.weight_decay == pytest.approx(2.4e-5)
  assert c.optim.groups == (('head/kernel', {'decay': 100.0}),)
  assert vit_jft.get_config('G14,adamw').optim.name == 'adamw'


@pytest.mark.parametrize(
  'name, stem, width', [('r50_vit_b32', 4, 768), ('r50_vit_l16', 3, 1024)]
)
def test_hybrids_of_the_scaling_figures(name, stem, width):
  c = vit_jft.get_config(name)
  model = create_model(c.model.name, **model_fields(c))
  assert (len(model.stem), model.width) == (stem, width)


def test_area_attention_as_published():
  plain = aa_vit_cifar10.get_config('s16')
  area = aa_vit_cifar10.get_config('s16,2')
  assert (plain.model.name, plain.model.drop_path) == ('deit_s16', 0.1)
  assert (area.model.name, area.model.drop_path) == ('aa_vit_s16', 0.0)
  assert area.model.area_sizes == ((1, 2), (1, 2))
  assert 'pos_embedding' in area.optim.decay_mask
  for c in (plain, area):
    assert c.data.image_size == 224 and c.data.device_resize is None
    assert (c.data.interpolation, c.eval.interpolation) == ('bicubic',) * 2
    assert (c.schedule.name, c.schedule.by_epoch) == ('timm_cosine', True)
    assert c.schedule.epoch_lag == 1
  matched = aa_vit_cifar10.get_config('s16,matched')
  assert matched.model.name == 'aa_vit_s16' and matched.model.area_sizes == ()


def test_two_words_that_exclude_one_another():
  with pytest.raises(ValueError, match='distill and hard are both given'):
    deit_i1k.get_config('s16,hard,distill')
  with pytest.raises(ValueError, match='2 and 3 are both given'):
    aa_vit_cifar10.get_config('s16,2,3')


@pytest.mark.parametrize(
  'recipe, arg, train_mode',
  [
    # main.py of DeiT, which CaiT and CeiT share: train(args.finetune == '').
    (deit_finetune, 'b16,384', False),
    (deit_finetune, 'b16,cifar10', False),
    (deit_finetune, 'b16,inat18', False),
    (cait_i1k, 's24,ft384', False),
    (cait_i1k, 'm48,ft448', False),
    (ceit_i1k, 't,ft384', False),
    (ceit_transfer, 't,cars', False),
    # timm's train.py always trains in training mode.
    (volo_i1k, 'd1,ft384', True),
    (deepvit_i1k, 'l,ft384', True),
    (deit_i1k, 's16', True),
  ],
)
def test_which_fine_tuning_leaves_the_model_in_evaluation_mode(
  recipe, arg, train_mode
):
  c = recipe.get_config(arg)
  assert c.run.train_mode == train_mode
  if train_mode:
    assert c.model.drop_path > 0


@pytest.mark.parametrize(
  'dataset, steps, warmup, rate, crop',
  [
    ('imagenet2012', 20_000, 500, 0.03, 'inception'),
    ('cifar10', 10_000, 500, 0.003, 'resize_crop'),
    ('cifar100', 10_000, 500, 0.01, 'resize_crop'),
    ('oxford_iiit_pet', 500, 100, 0.003, 'inception'),
    ('oxford_flowers102', 500, 100, 0.003, 'inception'),
  ],
)
def test_big_visions_transfer(dataset, steps, warmup, rate, crop):
  c = augreg_finetune.get_config(f'b32,{dataset},big_vision')
  check(c)
  assert (c.run.steps, c.schedule.warmup_steps) == (steps, warmup)
  assert (c.optim.lr, c.data.crop, c.data.image_size) == (rate, crop, 384)
  assert c.data.resize == (448 if crop == 'resize_crop' else None)
  assert (c.eval.crop, c.eval.crop_resize) == (384 / 448, 'resize_small')
  assert (c.data.rounding, c.eval.rounding) == ('truncate', 'truncate')
  assert (c.optim.clip, c.optim.weight_decay) == (1.0, 0.0)
  assert c.optim.accumulate == 1 and c.optim.state_dtype == 'bfloat16'


@pytest.mark.parametrize(
  'recipe, arg, more',
  [
    (deit_i1k, 's16', ()),
    (deit_i1k, 's16,distill', ('dist_token',)),
    (cait_i1k, 'xxs24', ()),
    (ceit_i1k, 't', ('pos_layer_embedding',)),
    (deepvit_i1k, 's', ()),
    (volo_i1k, 'd1', ()),
    (aa_vit_cifar10, 's16', ()),
    (
      aa_vit_cifar10,
      's16,2',
      ('cls', 'Transformer/posembed_input/pos_embedding'),
    ),
    (augreg_i1k, 'b16', ()),
    (vit_jft, 'g14', ()),
  ],
)
def test_what_decays_besides_kernels(recipe, arg, more):
  """The exemptions of the released code: no vectors, biases, other tables."""
  c = recipe.get_config(f'{arg},smoke')
  model = create_model(c.model.name, 10, **model_fields(c))
  params = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )['params']
  )
  rates = parameter_rates(c.optim, params)
  decayed = {path for path, rate in rates.items() if rate.decay}
  kernels = {path for path in rates if path.endswith('/kernel')}
  assert kernels and decayed == kernels | set(more)


@pytest.mark.parametrize('fractional, steps', [(False, 18), (True, 19)])
def test_lengths_in_epochs(fractional, steps):
  """3 epochs of 100 images in batches of 16: 3 x 6, or 18.75 rounded."""
  config = tiny_config(run=dict(steps=None, epochs=3.0))
  config.run.fractional_epochs = fractional
  mesh = make_mesh(devices=jax.devices()[:1])
  run = build(config, mesh, num_classes=5, num_examples=100)
  assert run.total_steps == steps
  assert run.steps_per_epoch == (6.25 if fractional else 6)
