"""The data of a run, held against what its checkpoint or weights were made of.

A checkpoint says which classes its outputs stand for and which examples it was
trained on. Data with the same classes in another order, or with some of them,
gets the numbers of the checkpoint; other classes or examples are an error.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
from typing import Any

from vit_jax.data.classes import ClassMismatch
from vit_jax.data.names import normalized
from vit_jax.data.sources.renumbered import with_classes
from vit_jax.data.sources.source import Source
from vit_jax.recipe.inputs import open_eval_sets, open_train_source
from vit_jax.recipe.keys import ConfigError
from vit_jax.recipe.sections import Config
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.steps import find_step, stored_metadata

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class RunData:
  """The data that a run reads.

  Attributes:
    source: of the training images, its classes numbered as the outputs.
    eval_sets: by name, numbered in the same way; empty where nothing is to be
      evaluated.
    num_classes: outputs of the model.
    new_head: the head of `run.pretrained` is of other classes: start a new one.
  """

  source: Source
  eval_sets: dict[str, Source]
  num_classes: int
  new_head: bool = False


@dataclasses.dataclass(frozen=True)
class _Origin:
  """Where a run gets its parameters, and what is known about them."""

  key: str  # of the recipe, or 'workdir'
  path: str
  metadata: WeightsMetadata


def open_data(config: Config, workdir: str | os.PathLike, say: Say) -> RunData:
  """Opens the data of a run and compares it with the origin of its parameters.

  Args:
    config: the recipe.
    workdir: of the run.
    say: prints a line.

  Raises:
    ConfigError: other classes, or other examples than in the run that is to go
      on; the message shows both.
    ValueError: there is no such source or split.
  """
  source = open_train_source(config)
  num_classes = config.data.num_classes or source.num_classes
  origin, new_head = _origin(config, workdir), False
  how = config.data.match_classes
  if how == 'new' and (origin is None or origin.key != 'run.pretrained'):
    # A stopped run that began with a new head goes on with it.
    if origin is not None and origin.key != 'workdir':
      raise ConfigError(
        "data.match_classes='new' starts a new head, and the run of "
        f'{origin.path} has one already: it goes with run.pretrained only'
      )
    how = 'names'
  if how == 'new':
    new_head = True
  elif origin is not None and origin.metadata.classes and source.class_names:
    source, new_head = _follow(config, source, origin, say)
    num_classes = source.num_classes
  classes = source.class_names
  if num_classes == 1 and not source.multi_label:
    raise ConfigError(
      f'{source.name} has only the class {(classes or [0])[0]!r}, so there is '
      'nothing to learn: give the folder that has a folder for each class'
    )
  eval_sets = open_eval_sets(config, num_classes, classes, say)
  return RunData(source, eval_sets, num_classes, new_head)


def _origin(config: Config, workdir: str | os.PathLike) -> _Origin | None:
  """Where a run gets its parameters, as `start.initial_state` decides it."""
  for key, path in (
    ('workdir', workdir),
    ('run.resume', config.run.resume),
    ('run.pretrained', config.run.pretrained),
  ):
    if path and find_step(path) is not None:
      return _Origin(key, str(path), stored_metadata(path))
  if config.run.pretrained:
    from vit_jax.weights import read

    path = str(config.run.pretrained)
    return _Origin('run.pretrained', path, read(path).metadata)
  return None


def _follow(
  config: Config, source: Source, origin: _Origin, say: Say
) -> tuple[Source, bool]:
  """The source numbered as its origin; whether a new head is needed."""
  classes: Sequence[str] = origin.metadata.classes or ()
  fix = (
    'Rename the folders of classes as they were, or give data.match_classes='
    "'numbers' to take class i of the data for output i"
  )
  if origin.key == 'run.pretrained':
    own = set(map(normalized, source.class_names or ()))
    if config.data.match_classes == 'names' and not own & {
      normalized(name) for name in classes
    }:
      say(
        f'{source.name} has none of the classes of {origin.path}: a new head '
        f'for its {source.num_classes} classes'
      )
      return source, True
    fix += ", or data.match_classes='new' to start a new head"
  if (
    origin.key == 'run.pretrained'
    and config.data.match_classes == 'numbers'
    and source.num_classes != len(classes)
  ):
    return source, True
  try:
    followed = with_classes(
      source,
      len(classes),
      classes,
      origin.path,
      how=config.data.match_classes,
      fix=fix,
      say=say,
    )
  except ClassMismatch as e:
    raise ConfigError(str(e)) from e
  if origin.key != 'run.pretrained' and not config.run.eval_only:
    _check_examples(config, source, followed is source, origin, say)
  return followed, False


def _check_examples(
  config: Config, source: Source, same_classes: bool, origin: _Origin, say: Say
) -> None:
  """Compares the training examples with those of the run that goes on."""
  stored: Any = origin.metadata.data
  if not stored or source.has_fingerprint(stored):
    return
  text = (
    f'the training examples of {origin.path} were others (fingerprint '
    f'{stored}) than those of {source.name} now ({len(source):,} examples, '
    f'fingerprint {source.fingerprint}): images were added, removed, renamed '
    'or changed'
  )
  if origin.key == 'workdir' and same_classes and not config.data.may_change:
    raise ConfigError(
      f'{text}. Restore them, take another --workdir, or go on with the '
      'changed data by data.may_change=True'
    )
  say(f'{text}. The run goes on with the changed data')
