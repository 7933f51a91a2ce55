"""The runs of an ablation: variants and seeds of a recipe."""

from collections.abc import Mapping
import re
from typing import Any

from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.overrides import load_recipe, set_key

OWN = ('arg', 'config', 'seeds')  # keys of a variant, not of the recipe


def variants(recipe: str) -> dict[str, dict[str, Any]]:
  """The variants of 'configs/X.py:ARG', by name.

  Raises:
    ConfigError: the recipe has no `sweep`, or two names give one directory.
  """
  path, _, arg = recipe.partition(':')
  module = load_recipe(path)
  if not hasattr(module, 'sweep'):
    raise ConfigError(
      f'{path} has no variants: give it a function sweep(arg) that returns '
      "{name: {'optim.lr': 1e-3, ...}, ...}"
    )
  found = module.sweep(arg or None)
  if not isinstance(found, Mapping):
    found = {', '.join(f'{k}={v}' for k, v in x.items()): x for x in found}
  folders = [folder(name) for name in found]
  if len(set(folders)) < len(folders) or not folders:
    raise ConfigError(
      f'{path}: sweep() must give variants of different names; '
      f'got {", ".join(folders) or "none"}'
    )
  return {name: dict(overrides) for name, overrides in found.items()}


def folder(name: str) -> str:
  """A variant's name as that of its directory."""
  return re.sub(r'[^\w.=+-]+', '_', name)


def variant_config(
  recipe: str,
  overrides: Mapping[str, Any],
  workdir,
  seed: int,
  common: Mapping[str, Any],
):
  """The config of one run: recipe, then variant, then the command line."""
  path, _, arg = str(overrides.get('config', recipe)).partition(':')
  arg = overrides.get('arg', arg)
  config = load_recipe(path).get_config(arg or None)
  config.run.seed += seed
  for key, value in [*overrides.items(), *common.items()]:
    if key in OWN:
      continue
    if isinstance(value, str):
      value = value.replace('{workdir}', str(workdir)).replace(
        '{seed}', str(seed)
      )
    set_key(config, key, value)
  return config


def make_plan(
  recipe: str, workdir, seeds: int, common: Mapping[str, Any]
) -> list[tuple[str, int, Any]]:
  """(variant, seed, config) of all runs, in order."""
  return [
    (name, k, variant_config(recipe, overrides, workdir, k, common))
    for name, overrides in variants(recipe).items()
    for k in range(overrides.get('seeds', seeds))
  ]
