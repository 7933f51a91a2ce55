"""docs/commands.md and docs/keys.md say what the code says."""

import importlib.util
import pathlib

import pytest

from tests.helpers import ROOT
from vit_jax.recipe.keys import default_config

_SPEC = importlib.util.spec_from_file_location(
  'docs_reference', pathlib.Path(ROOT, 'docs/reference.py')
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


@pytest.mark.parametrize('page', reference.PAGES)
def test_the_page_is_up_to_date(page):
  """Written by: python docs/reference.py"""
  assert (reference.DOCS / page).read_text() == reference.PAGES[page]()


def test_every_key_has_a_meaning():
  config = default_config()
  assert {*reference.SECTIONS} == {*config}
  for section in reference.SECTIONS:
    about = reference.comments(section)
    assert {*about} == {*config[section]}, section
    assert all(comment for _, comment in about.values()), section
