"""Fine-tuning recipes: the published values, and the command's defaults."""

import json

import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file

from configs import augreg_finetune, bit_hyperrule, bit_i1k, bit_i21k, mixer_i1k
from configs import finetune as recipes
from vit_jax import create_model
from vit_jax.recipe.checks import check
from vit_jax.recipe.finetuning import folder_config
from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.vtab import task_config
from vit_jax.weights import released_shapes


def test_published_settings():
  """Table 4 of the ViT paper and the defaults of its code."""
  c = recipes.get_config('b16,cifar10')
  assert (c.run.steps, c.schedule.warmup_steps) == (10_000, 500)
  assert (c.data.batch_size, c.optim.accumulate) == (512, 8)
  assert (c.optim.name, c.optim.state_dtype) == ('sgd', 'bfloat16')
  assert (c.optim.lr, c.optim.clip, c.optim.weight_decay) == (0.01, 1.0, 0.0)
  assert c.data.image_size == 384 and c.data.area == (0.05, 1.0)
  assert c.data.split == 'train[:98%]' and c.eval.crop == 0.0
  c = recipes.get_config('l16,imagenet2012')
  assert (c.run.steps, c.optim.lr) == (20_000, 0.03)
  assert recipes.get_config('vit_s14,folder').data.image_size == 378
  assert recipes.get_config('mixer_b16,cifar10').data.image_size == 224
  assert [r['optim.lr'] for r in recipes.sweep('b16,imagenet2012')] == [
    0.003,
    0.01,
    0.03,
    0.06,
  ]
  assert augreg_finetune.get_config('l16,imagenet2012').optim.lr == 0.01
  assert augreg_finetune.get_config('b16,oxford_iiit_pet').run.steps == 500


def test_vtab_settings():
  """Of the command: other batch sizes and lengths keep the proportions."""
  c = task_config('vit_s14', '', 'dtd', 'TFDS', batch_size=64, steps=50)
  assert c.optim.lr == pytest.approx(0.01 / 8) and c.optim.accumulate == 8
  assert (c.run.steps, c.schedule.warmup_steps) == (50, 10)
  assert c.data.image_size == 378 and c.data.match_classes == 'names'
  assert (c.data.source, c.data.dir) == ('vtab:dtd', 'TFDS')
  check(c)
  c = task_config('vit_s16', '', 'dtd', '', light=True, batch_size=6, lr=0.1)
  assert (c.optim.lr, c.optim.accumulate, c.data.image_size) == (0.1, 1, 224)
  with pytest.raises(ConfigError, match='steps=0: must be at least 1'):
    task_config('vit_s16', '', 'dtd', '', steps=0)


def test_hyperrule():
  c = bit_hyperrule.get_config('r50x1,cifar10')
  assert (c.model.name, c.data.resize, c.data.image_size) == (
    'bit_r50x1',
    160,
    128,
  )
  assert (c.run.steps, c.schedule.warmup_steps, c.data.mixup) == (
    10_000,
    500,
    0.1,
  )
  # As in the official PyTorch code.
  assert c.data.interpolation == c.eval.interpolation == 'bilinear_antialias'
  c = bit_hyperrule.get_config('r50x1,folder,3000x640')
  assert (c.run.steps, c.data.resize, c.data.image_size, c.data.mixup) == (
    500,
    512,
    480,
    0.0,
  )
  c = bit_hyperrule.get_config('r152x4,imagenet2012,448')
  assert (c.run.steps, c.data.resize, c.data.image_size) == (20_000, 448, 384)


@pytest.mark.parametrize(
  'module, arg',
  [
    (recipes, 'b16,cifar10,head'),
    (recipes, 's16,folder,layerdecay'),
    (recipes, 'r50_vit_b16,oxford_flowers102,short'),
    (recipes, 'smoke'),
    (recipes, 'mixer_b16,smoke'),
    (recipes, 'r50_vit_b16,smoke'),
    (augreg_finetune, 'r_vit_ti16,cifar100,long,224'),
    (augreg_finetune, 'smoke'),
    (bit_hyperrule, 'smoke'),
    (mixer_i1k, 'l16,60'),
    (mixer_i1k, 'smoke'),
    (bit_i21k, 'big_vision'),
    (bit_i21k, 'smoke'),
    (bit_i1k, 'r101x1,big_vision'),
    (bit_i1k, 'smoke'),
  ],
)
def test_recipes_are_valid(module, arg):
  check(module.get_config(arg))


@pytest.mark.parametrize(
  'arg, words',
  [
    ('b17,cifar10', 'b17'),
    ('b16,cifar10,cifar100', 'cifar10 and cifar100'),
    ('b16,cifar11', 'cifar11'),
  ],
)
def test_wrong_words(arg, words):
  with pytest.raises(ValueError, match=words):
    recipes.get_config(arg)


@pytest.fixture(scope='module')
def flat(tmp_path_factory):
  root = tmp_path_factory.mktemp('flat')
  for name in 'ab':
    (root / name).mkdir()
    for i in range(30):
      Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(
        root / name / f'{i}.png'
      )
  return str(root)


def test_defaults_of_the_command(flat):
  """54 training images on 8 CPU devices: batch 32, and 500 steps."""
  c = folder_config('deit_s16', '', flat)
  assert (c.data.source, c.data.batch_size, c.run.steps) == ('folder', 32, 500)
  assert c.optim.lr == pytest.approx(0.03 * 32 / 512)
  assert c.schedule.warmup_steps == 100
  assert (c.data.normalize, c.eval.crop) == ('imagenet', 0.875)
  assert c.data.interpolation == c.eval.interpolation == 'bicubic'
  c = folder_config(
    'vit_b16',
    '',
    flat,
    epochs=10,
    lr=0.5,
    batch_size=8,
    image_size=384,
    head_only=True,
    layer_decay=0.7,
  )
  assert (c.run.epochs, c.run.steps, c.optim.lr) == (10, None, 0.5)
  assert c.schedule.warmup_steps == 12  # a fifth of 60 steps
  assert (c.data.image_size, c.optim.layer_decay) == (384, 0.7)
  assert c.optim.groups[0][1] == {'lr': 0.0}
  check(c)


def test_the_weights_tell_the_model(flat, tmp_path):
  """An entry of the hub: its config.json has the architecture."""
  model = create_model('vit_tiny_patch16_224', 3, width=8, depth=1, num_heads=2)
  shapes = released_shapes(model, 32, 'timm')
  save_file(
    {k: np.zeros(s, np.float32) for k, s in shapes.items()},
    tmp_path / 'model.safetensors',
  )
  feeding = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
  config = {
    'architecture': 'vit_tiny_patch16_224',
    'pretrained_cfg': {'input_size': [3, 32, 32], **feeding},
    'model_args': {'depth': 1, 'embed_dim': 8, 'num_heads': 2, 'img_size': 32},
  }
  (tmp_path / 'config.json').write_text(json.dumps(config))
  c = folder_config(None, str(tmp_path / 'model.safetensors'), flat, steps=5)
  assert c.model.name == 'vit_tiny_patch16_224' and c.model.width == 8
  assert c.data.normalize == 'imagenet'
  check(c)


def test_wrong_arguments(flat, tmp_path):
  with pytest.raises(ConfigError, match='--model'):
    folder_config(None, '', flat)
  with pytest.raises(ValueError, match='gone does not exist'):
    folder_config('vit_b16', '', str(tmp_path / 'gone'))
