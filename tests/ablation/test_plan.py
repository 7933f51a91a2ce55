"""The runs of an ablation: variants, directories, configs."""

import pathlib

import jax
import pytest

from tests.helpers import ROOT
from vit_jax.ablation.plan import folder, variant_config, variants
from vit_jax.models.registry import create_model
from vit_jax.recipe.checks import check
from vit_jax.recipe.keys import model_fields


def test_a_list_of_overrides_names_itself():
  results = variants(f'{ROOT}/configs/finetune.py:b16,cifar10')
  assert next(iter(results)) == 'optim.lr=0.001' and len(results) == 4
  assert folder('a b/c, d=1e-3') == 'a_b_c_d=1e-3'


SWEEPS = [
  'aa_vit_cifar10:s16',
  'aa_vit_cifar10:small',
  'aa_vit_cifar10:small,distill',
  'aa_vit_cifar10:s16,distill',
  'augreg_finetune:b16,oxford_iiit_pet',
  'cait_i1k:s24',
  'ceit_i1k:t',
  'ceit_transfer:s,384',
  'cifar10:vit',
  'deepvit_i1k',
  'deepvit_i1k:widths',
  'deit_cifar10',
  'deit_i1k:ti16',
  'deit_i1k:b16',
  'finetune:b16,imagenet2012',
  'noisy_student_cifar10',
  'posemb_d3',
  'scaling_cifar10',
  'vit_scaling',
  'vit_scaling:hybrids',
  'volo_i1k',
  'vtab',
]


def test_every_sweep_is_tested():
  configs = pathlib.Path(ROOT, 'configs').glob('[!_]*.py')
  with_sweep = {p.stem for p in configs if 'def sweep(' in p.read_text()}
  assert with_sweep == {recipe.partition(':')[0] for recipe in SWEEPS}


SHAPES: dict[str, tuple[int, ...]] = {}  # variants share models


def output_shape(config) -> tuple[int, ...]:
  """The shape of the logits for two images of 32 pixels and 10 classes."""
  model = create_model(config.model.name, 10, **model_fields(config))
  model = model.clone(drop_path=0.0) if hasattr(model, 'drop_path') else model
  if repr(model) not in SHAPES:
    logits, _ = jax.eval_shape(
      lambda key, x: model.init_with_output(key, x, train=False)[0],
      jax.random.key(0),
      jax.ShapeDtypeStruct((2, 32, 32, 3), 'float32'),
    )
    SHAPES[repr(model)] = logits.shape
  return SHAPES[repr(model)]


@pytest.mark.parametrize('smoke', [False, True])
@pytest.mark.parametrize('recipe', SWEEPS)
def test_sweeps_of_recipes_fit(recipe, smoke, tmp_path):
  """Every variant is valid, and uses only results of earlier variants."""
  name, _, arg = recipe.partition(':')
  arg = ','.join(filter(None, [arg, 'smoke' * smoke]))
  recipe = f'{ROOT}/configs/{name}.py:{arg}'
  sweep = variants(recipe)
  for variant, overrides in sweep.items():
    assert ',' not in variant  # --variants separates names by commas
    config = variant_config(recipe, overrides, tmp_path, 1, {})
    if 'loss.teacher_weights' in overrides:  # a workdir, which says its model
      assert not config.loss.teacher
    if config.loss.distill != 'none' and not config.loss.teacher_weights:
      config.loss.teacher_weights = 'random'
    check(config)
    assert (config.data.source == 'synthetic') == smoke
    if smoke:
      assert output_shape(config) == (2, 10)
    if config.run.pretrained:
      start = config.run.pretrained.split('/')[-2]
      names = [folder(n) for n in sweep]
      assert start in names[: names.index(folder(variant))]


def test_published_numbers_of_the_sweeps():
  """They are from table 3 of DeiT and CaiT, and table 1 of the area project."""
  b16 = variants(f'{ROOT}/configs/deit_i1k.py:b16')
  assert [v['published'] for v in b16.values()] == [
    81.8,
    81.8,
    83.0,
    83.4,
    83.0,
    83.1,
    83.1,
    83.2,
    84.0,
    84.5,
    84.2,
    84.4,
  ]
  assert b16['soft 384']['arg'] == 'b16,384,soft'
  s24 = variants(f'{ROOT}/configs/cait_i1k.py:s24')
  assert {n: v['published'] for n, v in s24.items()} == {
    '224': 82.7,
    '384': 84.3,
    '224 distill': 83.5,
    '384 distill': 85.1,
  }
  area = variants(f'{ROOT}/configs/aa_vit_cifar10.py:s16')
  assert area['max 2']['published'] == {
    'top-1': 91.44,
    'top-5': 99.6,
    'loss': 0.408,
  }


@pytest.mark.parametrize(
  'recipe, published',
  [
    (
      'posemb_d3',
      [61.382, 64.206, 63.964, 64.292, 64.001, 64.046, 64.022, 64.032],
    ),
    ('deepvit_i1k', [78.88, 79.10, 79.35, 79.99, 79.27, 80.90]),
    (
      'volo_i1k',
      [84.2, 85.2, 85.2, 86.0, 85.4, 86.3, 85.7, 86.8, 86.1, 87.0, 87.1],
    ),
    ('ceit_i1k:t', [72.2, 76.4]),
    ('ceit_i1k:s', [79.8, 82.0]),
    ('ceit_transfer:t', [64.3, 72.8, 90.5, 96.9, 93.8, 98.5, 88.4]),
    ('ceit_transfer:t,384', [72.2, 77.9, 93.0, 97.8, 94.5, 98.5, 88.0]),
    ('ceit_transfer:s', [73.3, 78.9, 93.2, 98.2, 94.6, 99.0, 90.8]),
    ('ceit_transfer:s,384', [79.4, 82.7, 94.1, 98.6, 94.9, 99.1, 90.8]),
    ('deit_i1k:ti16', [72.2, 72.2, 74.3, 74.5, 73.9, 74.6]),
    ('deit_i1k:s16', [79.8, 79.8, 80.9, 81.2, 80.9, 81.1]),
    ('cait_i1k:xxs24', [77.6, 80.4, 78.4, 80.9]),
    ('cait_i1k:m36', [83.8, 84.9, 85.1, 86.1]),
    ('aa_vit_cifar10:s16', [90.02, 91.44, 87.77, 84.61]),
    ('aa_vit_cifar10:ti16', [85.49, 86.14]),
  ],
)
def test_published_numbers_of_the_other_sweeps(recipe, published):
  name, _, arg = recipe.partition(':')
  sweep = variants(f'{ROOT}/configs/{name}.py:{arg}')
  values = [v['published'] for v in sweep.values() if 'published' in v]
  first = lambda v: next(iter(v.values())) if isinstance(v, dict) else v
  assert [first(v) for v in values] == published
