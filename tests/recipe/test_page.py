"""docs/recipes.md says what the recipes are, and deviations have reasons."""

import importlib.util
import pathlib

import pytest

from tests.helpers import ROOT

_SPEC = importlib.util.spec_from_file_location(
  'docs_recipes', pathlib.Path(ROOT, 'docs/recipes.py')
)
page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page)


@pytest.mark.parametrize(
  'variant', page.VARIANTS, ids=lambda v: f'{v.recipe}:{v.arg}'
)
def test_recipe_has_the_published_settings(variant):
  assert set(page.differences(variant)) == set(variant.deviations)


def test_the_page_is_up_to_date():
  """Written by: python docs/recipes.py"""
  assert page.PAGE.read_text() == page.page()


def test_every_published_recipe_is_on_the_page():
  ours = {  # studies of ours, and names of others
    'cifar10',
    'deit_cifar10',
    'digits',
    'imagefolder',
    'noisy_student_cifar10',
    'ceit_transfer',
    'posemb_d3',
    'vit_scaling',
    'vit_G14_jft',
    'vit_b16_i21k',
    'vit_h14_jft',
    'vit_l16_i21k',
    'vit_l16_jft',
  }
  recipes = {p.stem for p in pathlib.Path(ROOT, 'configs').glob('[!_]*.py')}
  assert {v.recipe for v in page.VARIANTS} | ours == recipes
