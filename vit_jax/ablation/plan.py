"""The plan of an ablation: a run for each variant of a recipe and each seed."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import re
from typing import Any

from etils import epath

from vit_jax.files import as_path
from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.overrides import (
  call_recipe,
  load_config,
  load_recipe,
  override,
)
from vit_jax.recipe.sections import Config

# A recipe's function `measure`: from the config and the directory of a finished
# run to {column of the table: value}.
Measure = Callable[[Config, epath.Path], Mapping[str, float]]

# Keys that a variant may have in addition to the keys of a recipe.
VARIANT_KEYS = ('arg', 'config', 'seeds', 'published')


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One run: a variant with one seed.

  Attributes:
    variant: name of the variant.
    seed: number of the seed, from 0.
    directory: workdir of the run.
    config: recipe of the run, not yet checked.
    measure: the function `measure` of the recipe; None if it has none.
    prepare: the function `prepare` of the recipe; None if it has none.
  """

  variant: str
  seed: int
  directory: epath.Path
  config: Config
  measure: Measure | None = None
  prepare: Callable[[Config], None] | None = None

  @property
  def title(self) -> str:
    """The name of the run in messages."""
    return f'{self.variant}, seed {self.seed}'


def variants(recipe: str) -> dict[str, dict[str, Any]]:
  """The variants of a recipe, from its function `sweep`.

  Args:
    recipe: 'configs/X.py:ARG'.

  Returns:
    {name: {key: value}}.

  Raises:
    ConfigError: the recipe has no function `sweep`, or two variants would have
      the same directory.
  """
  path, _, arg = recipe.partition(':')
  module = load_recipe(path)
  if not hasattr(module, 'sweep'):
    raise ConfigError(
      f'{path} has no variants: give it a function sweep(arg) that returns '
      "{name: {'optim.lr': 1e-3, ...}, ...}"
    )
  sweep = call_recipe(module, 'sweep', arg or None)
  if not isinstance(sweep, Mapping):
    sweep = {', '.join(f'{k}={v}' for k, v in x.items()): x for x in sweep}
  folders = [folder(name) for name in sweep]
  if len(set(folders)) < len(folders) or not folders:
    raise ConfigError(
      f'{path}: sweep() must return variants with different names; '
      f'it returned {", ".join(folders) or "none"}'
    )
  return {name: dict(values) for name, values in sweep.items()}


def folder(name: str) -> str:
  """The directory of a variant: its name, with '_' for unusual characters."""
  return re.sub(r'[^\w.=+-]+', '_', name)


def variant_config(
  recipe: str,
  variant: Mapping[str, Any],
  workdir: str | epath.Path,
  seed: int,
  overrides: Mapping[str, Any],
) -> Config:
  """The config of one run.

  The keys of the variant replace those of the recipe, and the overrides replace
  both.

  Args:
    recipe: 'configs/X.py:ARG'.
    variant: {key: value}, from `variants`.
    workdir: directory of the ablation.
    seed: number of the seed; it is added to the recipe's run.seed.
    overrides: {key: value} for all variants.

  Raises:
    ConfigError: a key or a value is not allowed.
  """
  path, _, arg = str(variant.get('config', recipe)).partition(':')
  arg = variant.get('arg', arg)
  # A variant names its recipe 'configs/Y.py', but the command may have been
  # started in another directory. Then the recipe is looked for beside X.py.
  if not pathlib.Path(path).exists():
    beside = pathlib.Path(recipe.partition(':')[0]).parent / path.split('/')[-1]
    path = str(beside) if beside.exists() else path
  config = load_config(f'{path}:{arg}')
  config.run.seed += seed

  def fill(value):
    if not isinstance(value, str):
      return value
    value = value.replace('{workdir}', str(workdir))
    return value.replace('{seed}', str(seed))

  for values in (variant, overrides):
    override(
      config, {k: fill(v) for k, v in values.items() if k not in VARIANT_KEYS}
    )
  return config


def make_plan(
  recipe: str,
  workdir: str | epath.Path,
  seeds: int,
  overrides: Mapping[str, Any],
) -> list[PlannedRun]:
  """All runs of an ablation, variant by variant.

  Args:
    recipe: 'configs/X.py:ARG'.
    workdir: directory of the ablation.
    seeds: runs of each variant that has no key 'seeds'.
    overrides: {key: value} for all variants.
  """
  module = load_recipe(recipe.partition(':')[0])
  return [
    PlannedRun(
      name,
      seed,
      as_path(workdir) / folder(name) / f'seed{seed}',
      variant_config(recipe, variant, workdir, seed, overrides),
      getattr(module, 'measure', None),
      getattr(module, 'prepare', None),
    )
    for name, variant in variants(recipe).items()
    for seed in range(variant.get('seeds', seeds))
  ]
