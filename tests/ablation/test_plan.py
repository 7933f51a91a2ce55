"""The runs of an ablation: variants, directories, configs."""

import pytest

from tests.helpers import ROOT
from vit_jax.ablation.plan import folder, variant_config, variants
from vit_jax.recipe.checks import check


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
  'vit_scaling',
  'vit_scaling:hybrids',
  'volo_i1k',
]


@pytest.mark.parametrize('smoke', [False, True])
@pytest.mark.parametrize('recipe', SWEEPS)
def test_sweeps_of_recipes_fit(recipe, smoke, tmp_path):
  """Every variant is valid, and starts from one that comes before it."""
  name, _, arg = recipe.partition(':')
  arg = ','.join(filter(None, [arg, 'smoke' * smoke]))
  recipe = f'{ROOT}/configs/{name}.py:{arg}'
  sweep = variants(recipe)
  for variant, overrides in sweep.items():
    config = variant_config(recipe, overrides, tmp_path, 1, {})
    if config.loss.distill != 'none' and not config.loss.teacher_weights:
      config.loss.teacher_weights = 'random'
    check(config)
    assert (config.data.source == 'synthetic') == smoke
    if config.run.pretrained:
      start = config.run.pretrained.split('/')[-2]
      names = [folder(n) for n in sweep]
      assert start in names[: names.index(folder(variant))]


def test_published_numbers_of_the_sweeps():
  """Table 3 of DeiT and CaiT, the first table of the area project."""
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
