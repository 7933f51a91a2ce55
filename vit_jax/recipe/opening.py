"""Makes a run of a recipe: its checks, its data and its model."""

from collections.abc import Callable, Sequence
import copy
import os
from typing import Any, NamedTuple

import jax

from vit_jax.data.sources.source import Source
from vit_jax.parallel.agreement import require_agreement
from vit_jax.parallel.mesh import batch_slice, make_mesh
from vit_jax.recipe.agreement import facts_of_run
from vit_jax.recipe.build import Run, build
from vit_jax.recipe.checks import check
from vit_jax.recipe.data import epoch_examples
from vit_jax.recipe.extension import begins
from vit_jax.recipe.identity import open_data
from vit_jax.recipe.keys import to_json
from vit_jax.recipe.scan import scan
from vit_jax.recipe.sections import Config
from vit_jax.recipe.stored import (
  adopt_earlier,
  adopt_extension,
  check_workdir,
)


class Opened(NamedTuple):
  """A run with its data.

  Attributes:
    run: what `build` made of the recipe.
    source: of the training images.
    eval_sets: by name.
    new_head: the head of `run.pretrained` is of other classes.
  """

  run: Run
  source: Source
  eval_sets: dict[str, Source]
  new_head: bool


def checked(
  config: Config, workdir: str | os.PathLike | None
) -> tuple[Config, list[str]]:
  """A checked copy of the recipe, and lines about what a resumed run changes.

  Keys that the recipe does not set are set as the run in the workdir has them,
  see `adopt_earlier` and `adopt_extension`.

  Args:
    config: the recipe.
    workdir: of the run; None if the run will write nothing.

  Raises:
    ConfigError: the recipe cannot work, or the workdir has another run.
  """
  check(config)
  config = copy.deepcopy(config)
  adopted = [] if workdir is None else adopt_earlier(config, workdir)
  if config.run.resume:
    adopted += adopt_earlier(config, config.run.resume)
  notes = []
  if adopted:
    notes.append(
      f'set as in the earlier version that began this run: {", ".join(adopted)}'
    )
  if workdir is not None:
    kept, changed = adopt_extension(config, workdir)
    check_workdir(workdir, to_json(config), goes_on=begins(config, workdir))
    if kept:
      notes.append(f'set as in the run of {workdir}: {", ".join(kept)}')
    if changed:
      notes.append(f'changed where the run goes on: {"; ".join(changed)}')
  return config, notes


def open_run(
  config: Config,
  workdir: str | os.PathLike,
  devices: Sequence[Any] | None,
  say: Callable[[str], None],
) -> Opened:
  """Opens the data of a checked recipe, and makes its run.

  All processes have the same, and small data sets can be read.

  Args:
    config: what `checked` returned.
    workdir: of the run.
    devices: the devices to use; None for all.
    say: prints a line.

  Raises:
    ConfigError: the recipe does not fit the data or the devices.
    ProcessesDiffer: the processes of a job differ in recipe, data or version.
  """
  if not config.run.compilation_cache:
    jax.config.update('jax_enable_compilation_cache', False)
  opened = build_run(config, workdir, devices, say)
  require_agreement(
    facts_of_run(opened.run, workdir, opened.source, opened.eval_sets),
    'before the first step',
  )
  scan(config, opened.source, opened.eval_sets, say)
  return opened


def build_run(
  config: Config,
  workdir: str | os.PathLike,
  devices: Sequence[Any] | None,
  say: Callable[[str], None],
) -> Opened:
  """Like `open_run`, without reading images and comparing the processes."""
  mesh = make_mesh(
    config.mesh.preset, config.mesh.fsdp, config.mesh.tensor, devices
  )
  batch_slice(mesh)  # raises if the processes cannot feed this mesh
  data = open_data(config, workdir, say)
  run = build(
    config,
    mesh,
    num_classes=data.num_classes,
    num_examples=epoch_examples(config, data.source),
  )
  return Opened(run, data.source, data.eval_sets, data.new_head)
