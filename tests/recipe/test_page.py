"""docs/recipes.md says what the recipes are, and deviations have reasons."""

import importlib.util
import pathlib

import pytest

from tests.helpers import ROOT
from vit_jax.recipe import shared

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


def arguments(recipe):
  """All arguments of a recipe that the page names."""
  own = [v.arg for v in page.VARIANTS if v.recipe == recipe]
  return [*own, *page.OTHERS.get(recipe, {})]


def test_every_recipe_is_on_the_page():
  recipes = {p.stem for p in pathlib.Path(ROOT, 'configs').glob('[!_]*.py')}
  named = {v.recipe for v in page.VARIANTS} | {*page.OTHERS}
  assert named | {*page.ALIASES} == recipes
  assert not named & {*page.ALIASES}


def test_every_switch_of_every_recipe_is_on_the_page(monkeypatch):
  """The switches are what a recipe gives to `parse_arg`."""
  known = []
  parse_arg = shared.parse_arg

  def record(arg, *, model='', options=()):
    known.append(tuple(options))
    return parse_arg(arg, model=model, options=known[-1])

  monkeypatch.setattr(shared, 'parse_arg', record)
  missing = {}
  for recipe in {v.recipe for v in page.VARIANTS} | {*page.OTHERS}:
    known.clear()
    page.load.__wrapped__(recipe)  # without the cache
    options = known[0] if known else ()
    words = {w for arg in arguments(recipe) for w in arg.split(',')}
    missing[recipe] = [option for option in options if option not in words]
  assert not {recipe: rest for recipe, rest in missing.items() if rest}


def test_other_names_of_recipes():
  for name, recipe in page.ALIASES.items():
    ours, published = page.load(name), page.load(*recipe.split(':'))
    assert ours.to_dict() == published.to_dict()
