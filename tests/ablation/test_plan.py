"""The runs of an ablation: variants, directories, configs."""

import pytest

from configs import deit_cifar10, deit_i1k
from tests.helpers import ROOT
from vit_jax.ablation.plan import folder, variant_config, variants
from vit_jax.recipe.checks import check


def test_a_list_of_overrides_names_itself():
  results = variants(f'{ROOT}/configs/finetune.py:b16,cifar10')
  assert next(iter(results)) == 'optim.lr=0.001' and len(results) == 4
  assert folder('a b/c, d=1e-3') == 'a_b_c_d=1e-3'


@pytest.mark.parametrize('recipe', ['deit_cifar10', 'deit_i1k:ti16'])
def test_sweeps_of_recipes_fit(recipe, tmp_path):
  name, _, arg = recipe.partition(':')
  recipe = f'{ROOT}/configs/{name}.py:{arg}'
  results = variants(recipe)
  for variant, overrides in results.items():
    config = variant_config(recipe, overrides, tmp_path, 1, {})
    if config.loss.distill != 'none' and not config.loss.teacher_weights:
      config.loss.teacher_weights = 'random'
    check(config)
    if config.run.pretrained:  # of a variant that comes before
      made = config.run.pretrained.split('/')[-2]
      names = [folder(n) for n in results]
      assert made in names[: names.index(folder(variant))]
  assert deit_i1k.sweep('b16')['hard']['arg'] == 'b16,hard'
  assert deit_cifar10.sweep('smoke')['teacher']['arg'] == 'teacher,smoke'
