"""Settings that recorded files may have: all are keys of a recipe.

The recorded files of `tests/fixtures/parity` use some values of the official
options. These tests read others, by the functions that read the files, and hand
them to the product.
"""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import (
  check_crops,
  check_data,
  check_train_google,
  check_train_timm,
)
from tests.parity.training_run import load, set_keys
from vit_jax.data.transforms import eval_image
from vit_jax.preprocessing import normalization
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import default_config, preprocessing
from vit_jax.training.optimizers import make_optimizer
from vit_jax.training.rates import parameter_rates
from vit_jax.training.schedules import make_schedule

PARAMS = {
  'embedding': {'kernel': jnp.ones((32, 40))},
  'block': {'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)},
  'head': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)},
}
NAMES = [f'{a}/{b}' for a, tree in PARAMS.items() for b in tree]


def configured(settings):
  config = default_config()
  config.run.steps = 10
  set_keys(config, settings)
  check(config)
  return config


def rate(config, step, total=100, steps_per_epoch=10):
  schedule = make_schedule(
    config.schedule,
    config.optim,
    total_steps=total,
    steps_per_epoch=steps_per_epoch,
    batch_size=8,
  )
  return float(schedule(step))


@pytest.mark.parametrize(
  'text, method',
  [
    ('resize(8)', 'bilinear'),
    ('resize(8, "nearest")', 'tf_nearest'),
    ('resize((8, 6), method="lanczos3")', 'tf_lanczos3'),
    ('resize(8, "bicubic", True)', 'tf_bicubic_antialias'),
    ('resize(8, method="mitchellcubic", antialias=True)', 'tf_mitchellcubic_'),
    ('resize_small(8)|central_crop(6)', 'area'),
    ('resize_small(8, method="gaussian")|central_crop((6, 8))', 'tf_gaussian'),
    ('resize_long(8)', 'area'),
    # Unlike the other two, this one antialiases unless told otherwise.
    ('resize_long(8, method="bilinear")', 'tf_bilinear_antialias'),
    ('resize_long(8, method="bilinear", antialias=False)', 'bilinear'),
    ('resize_long(8)|central_crop(6)|value_range(-2, 2)', 'area'),
  ],
)
def test_every_resize_is_a_recipe(text, method):
  ops = check_data.parse_ops(text)
  p = check_data.as_preprocessing(ops)
  assert p.interpolation.startswith(method)
  config = configured(
    {
      'data.image_size': p.size[0],
      'data.image_width': p.size[1],
      'data.normalize': p.normalize,
      'eval.crop': p.crop or 0.0,
      'eval.crop_resize': p.crop_resize,
      'eval.interpolation': p.interpolation,
      'eval.rounding': p.rounding,
      'model.patch_size': 2,
    }
  )
  assert preprocessing(config) == p
  image = np.random.default_rng(0).integers(0, 256, (20, 13, 3), np.uint8)
  check_data.check_eval_image(ops, image, check_data.run_ops(ops, image))
  assert eval_image(image, p).shape == (*p.size, 3)


@pytest.mark.parametrize(
  'text, ends',
  [
    ('value_range()', (-1, 1)),
    ('value_range(0)', (0, 1)),
    ('value_range(vmax=3)', (-1, 3)),
    ('value_range(-1, 1, in_max=127.5)', (-1, 3)),
    ('value_range(0, 255, clip_values=True)', (0, 255)),
    ('vgg_value_range(mean=(51, 51, 51), std=(102, 102, 102))', (-0.5, 2)),
  ],
)
def test_every_value_range_is_a_normalization(text, ends):
  op = check_data.parse_ops(text)[0]
  mean, std = normalization(check_data.normalization_of(op))
  for pixel, end in zip((0, 255), ends, strict=True):
    np.testing.assert_allclose((pixel - np.array(mean)) / std, end, atol=1e-6)


def test_the_range_that_cuts_values_off_is_refused():
  op = check_data.parse_ops('value_range(0, 1, 10, 200, True)')[0]
  with pytest.raises(ValueError, match='cuts values off'):
    check_data.normalization_of(op)


def test_timms_preprocessing_has_its_own_constants():
  p = check_data.timm_preprocessing(
    {
      'crop_pct': 1.0,
      'input_size': 32,
      'interpolation': 'lanczos',
      'steps': ['Resize(32)', 'Normalize(mean=(0.5, 0.4, 0.3), std=(1, 2, 3))'],
    }
  )
  mean, std = normalization(p.normalize)
  np.testing.assert_allclose(mean, [127.5, 102, 76.5])
  np.testing.assert_allclose(std, [255, 510, 765])
  assert (p.interpolation, p.crop) == ('lanczos', 1.0)


def test_ranges_of_crops():
  config = load('vit_s16_i1k')
  check_crops.set_ranges(config, 'area20_90', {'ratio': [0.5, 2]})
  assert config.data.area == (0.2, 0.9) and config.data.aspect == (0.5, 2.0)


BASE = {'lr': 0.5, 'grad_clip_norm': None, 'optax_name': 'scale_by_adam'}


def rates_of(c):
  settings = check_train_google.optimizer_settings({**BASE, **c}, NAMES)
  config = configured(settings)
  make_optimizer(config.optim, lambda step: 0.5, PARAMS).init(PARAMS)
  return config.optim, parameter_rates(config.optim, PARAMS)


def test_google_factors_of_rate_and_decay():
  _, rates = rates_of(
    {
      'wd': 0.1,
      'wd_mults': [['head/kernel', 9.0], ['.*/kernel', 1.0]],
      'lr_mults': [['head/.*', 0.1], ['.*', 2.0]],
      'schedule': [['embedding/.*', None], ['.*', {'decay_type': 'cosine'}]],
    }
  )
  assert rates['embedding/kernel'].frozen
  assert (rates['head/kernel'].lr, rates['head/kernel'].decay) == (0.1, 9.0)
  assert (rates['block/kernel'].lr, rates['block/kernel'].decay) == (2.0, 1.0)
  assert (rates['block/bias'].lr, rates['block/bias'].decay) == (2.0, 0.0)
  _, plain = rates_of({'wd': 0.1})
  assert plain['head/kernel'].decay == 1 and not plain['head/bias'].decay


@pytest.mark.parametrize(
  'name, options, key, value',
  [
    ('scale_by_adam', {'b2': 0.95, 'nesterov': True}, 'nesterov', True),
    ('big_vision.momentum_hp', {'nesterov': True}, 'state_dtype', 'bfloat16'),
    ('big_vision.momentum_hp', {'dtype': 'float32'}, 'state_dtype', 'float32'),
    ('trace', {'decay': 0.8}, 'momentum', 0.8),
    ('big_vision.sgd', {}, 'momentum', 0.0),
    ('big_vision.scale_by_adafactor', {'momentum': None}, 'b1', 0.0),
    ('big_vision.scale_by_adafactor', {'beta2_cap': 0.9}, 'b2', 0.9),
  ],
)
def test_google_optimizers(name, options, key, value):
  optim, _ = rates_of({'optax_name': name, 'optax': options})
  assert optim[key] == value


def test_google_adafactor():
  options = {
    'min_dim_size_to_factor': 8,
    'decay_rate': 0.7,
    'decay_offset': -1,
    'clipping_threshold': 1.0,
    'eps': 1e-20,
    'dtype_momentum': 'float32',
  }
  name = 'big_vision.scale_by_adafactor'
  optim, _ = rates_of({'optax_name': name, 'optax': options})
  assert optim.adafactor.to_dict() == {
    'min_factored': 8,
    'decay_exponent': 0.7,
    'decay_offset': -1,
    'eps': 1e-20,
    'update_clip': 1.0,
  }
  with pytest.raises(ValueError, match='unknown arguments.*rate'):
    rates_of({'optax_name': name, 'optax': {'rate': 1}})


@pytest.mark.parametrize(
  'schedule, step, factor',
  [
    ({'decay_type': 'rsqrt', 'timescale': 40, 'shift': 30}, 50, 3**-0.5),
    (
      {'decay_type': 'rsqrt', 'timescale_examples': 320, 'warmup_steps': 10},
      50,
      2**-0.5,
    ),
    ({'decay_type': 'linear', 'linear_end': 0.1}, 100, 0.1),
    ({'decay_type': 'linear', 'power': 2.0}, 50, 0.25),
    ({'decay_type': 'polynomial', 'power': 2.0, 'end': 0.2}, 50, 0.4),
    ({'decay_type': 'stair', 'steps': [30, 60], 'mults': [0.3, 0.1]}, 61, 0.1),
    ({'decay_type': 'cosine', 'warmup_examples': 160}, 10, 0.5),
    ([['.*', {'decay_type': 'cosine', 'cooldown_steps': 20}]], 50, 0.5),
  ],
)
def test_google_schedules(schedule, step, factor):
  settings = check_train_google.schedule_settings(schedule, 0.5, 8)
  config = configured({**settings, 'optim.lr': 0.5})
  assert rate(config, step) == pytest.approx(0.5 * factor, rel=1e-5)


def test_two_schedules_in_a_run_are_refused():
  schedules = [
    ['head/.*', {'decay_type': 'cosine'}],
    ['.*', {'decay_type': 'linear'}],
  ]
  with pytest.raises(ValueError, match='several schedules'):
    check_train_google.schedule_settings(schedules, 0.5)


TIMM = {
  'lr': 0.1,
  'momentum': 0.9,
  'weight_decay': 0.05,
  'warmup_epochs': 2,
  'warmup_lr': 1e-3,
  'min_lr': 1e-4,
  'epochs': 9,
  'decay_epochs': 3,
  'decay_rate': 0.1,
}


@pytest.mark.parametrize(
  'opt, name, style',
  [
    ('adamw', 'adamw', 'lr'),
    ('adam', 'adam', 'coupled'),
    ('nesterov', 'sgd', 'coupled'),
    ('momentum', 'sgd', 'coupled'),
  ],
)
def test_timm_optimizers(opt, name, style):
  c = {**TIMM, 'opt': opt, 'opt_betas': [0.8, 0.95], 'opt_eps': 1e-6}
  config = configured(check_train_timm.optimizer_settings(c))
  optim = config.optim
  assert (optim.name, optim.decay_style) == (name, style)
  assert (optim.b1, optim.b2, optim.eps) == (0.8, 0.95, 1e-6)
  make_optimizer(optim, lambda step: 0.1, PARAMS).init(PARAMS)


def test_timm_schedules():
  c = {**TIMM, 'sched': 'step'}
  settings = check_train_timm.schedule_settings(c, steps_per_epoch=10)
  config = configured({**settings, 'optim.lr': 0.1})
  # The first two epochs at the start of the warm-up, then one behind.
  expected = [1e-3, 1e-3, 0.0505, 0.1, 0.01, 0.01, 0.01, 0.001]
  rates = [rate(config, 10 * e, total=90) for e in range(8)]
  np.testing.assert_allclose(rates, expected, rtol=1e-5)
  with pytest.raises(ValueError, match="sched='tanh'"):
    check_train_timm.schedule_settings({**TIMM, 'sched': 'tanh'}, 10)


def test_normalization_of_a_recorded_run():
  text = 'given as (x/255 - mean)/std with mean [{}] std [{}]'
  read = lambda *words: check_train_timm._normalization(text.format(*words))
  assert read('0.485, 0.456, 0.406', '0.229, 0.224, 0.225') == 'imagenet'
  assert read('0.5, 0.5, 0.5', '0.5, 0.5, 0.5') == 'half'
  own = read('0.4914, 0.4822, 0.4465', '0.2023, 0.1994, 0.2010')
  configured({'data.normalize': own})
  np.testing.assert_allclose(normalization(own)[0][0], 0.4914 * 255)


VIT = {'embed_dim': 24, 'num_heads': 4, 'patch_size': 4, 'depth': 1}


@pytest.mark.parametrize(
  'family, model, options, recipe',
  [
    ('deit', VIT, {'opt': 'adamw'}, 'deit_i1k:s16'),
    ('deit', VIT, {'distillation_type': 'hard'}, 'deit_i1k:s16,hard'),
    ('deit', VIT, {'opt': 'momentum'}, 'deit_finetune:s16,cifar10'),
    ('cait', VIT, {'distillation_type': 'hard'}, 'cait_i1k:xxs24,distill'),
    ('deepvit', {**VIT, 'apply_transform': [True]}, {}, 'deepvit_i1k:s'),
    ('area', VIT, {}, 'aa_vit_cifar10:s16'),
  ],
)
def test_recipes_of_timms_family(family, model, options, recipe):
  case = types.SimpleNamespace(meta={}, params={})
  build = getattr(check_train_timm, f'_{family}')
  name, fields = build(case, model, {'opt': 'adamw', **options})
  assert name == recipe
  config = load(name)
  set_keys(config, {f'model.{k}': v for k, v in fields.items()})
  if config.loss.distill != 'none':
    config.loss.teacher_weights = 'random'
  check(config)


def test_models_of_vision_transformer():
  vit = {
    'classifier': 'gap',
    'hidden_size': 24,
    'representation_size': None,
    'transformer': {'mlp_dim': 48, 'num_heads': 4, 'num_layers': 2},
  }
  mixer = {
    'hidden_dim': 24,
    'num_blocks': 1,
    'tokens_mlp_dim': 8,
    'channels_mlp_dim': 48,
  }
  hybrid = {**vit, 'resnet': {'num_layers': [1], 'width_factor': 0.5}}
  for model, name in ((vit, 'b16'), (mixer, 'mixer_b16'), (hybrid, 'b16')):
    fields = check_train_google._vit_jax_fields(
      {'patch': [4, 4], 'model': model}
    )
    config = load(f'finetune:{name},cifar10')
    set_keys(config, {f'model.{k}': v for k, v in fields.items()})
    check(config)
  vit['transformer']['dropout_rate'] = 0.1
  with pytest.raises(ValueError, match='dropout'):
    check_train_google._vit_jax_fields({'patch': [4, 4], 'model': vit})
