"""The runs of an ablation: variants of a recipe times seeds."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import re
from typing import Any

from etils import epath

from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.overrides import (
  call_recipe,
  load_config,
  load_recipe,
  override,
)
from vit_jax.recipe.sections import Config

# (config, directory of a finished run) -> {column of the table: value}.
Measure = Callable[[Config, epath.Path], Mapping[str, float]]

# Keys of a variant itself; all others are keys of the recipe.
VARIANT_KEYS = ('arg', 'config', 'seeds', 'published')


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One run: a variant with one seed.

  Attributes:
    variant: its name.
    seed: number of the seed, from 0.
    directory: workdir of the run.
    config: its recipe, not yet checked.
    measure: the recipe's `measure`, if it has one.
  """

  variant: str
  seed: int
  directory: epath.Path
  config: Config
  measure: Measure | None = None

  @property
  def title(self) -> str:
    return f'{self.variant}, seed {self.seed}'


def variants(recipe: str) -> dict[str, dict[str, Any]]:
  """The variants of 'configs/X.py:ARG': {name: {key: value}}.

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
  sweep = call_recipe(module, 'sweep', arg or None)
  if not isinstance(sweep, Mapping):
    sweep = {', '.join(f'{k}={v}' for k, v in x.items()): x for x in sweep}
  folders = [folder(name) for name in sweep]
  if len(set(folders)) < len(folders) or not folders:
    raise ConfigError(
      f'{path}: sweep() must give variants of different names; '
      f'got {", ".join(folders) or "none"}'
    )
  return {name: dict(values) for name, values in sweep.items()}


def folder(name: str) -> str:
  """The directory of a variant: its name with '_' for what suits no path."""
  return re.sub(r'[^\w.=+-]+', '_', name)


def variant_config(
  recipe: str,
  variant: Mapping[str, Any],
  workdir: str | epath.Path,
  seed: int,
  overrides: Mapping[str, Any],
) -> Config:
  """The config of one run: the recipe, then the variant, then the overrides."""
  path, _, arg = str(variant.get('config', recipe)).partition(':')
  arg = variant.get('arg', arg)
  if not pathlib.Path(path).exists():  # 'configs/Y.py' of another directory
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
  """All runs in order, variant by variant."""
  measure = getattr(load_recipe(recipe.partition(':')[0]), 'measure', None)
  return [
    PlannedRun(
      name,
      seed,
      epath.Path(workdir) / folder(name) / f'seed{seed}',
      variant_config(recipe, variant, workdir, seed, overrides),
      measure,
    )
    for name, variant in variants(recipe).items()
    for seed in range(variant.get('seeds', seeds))
  ]
