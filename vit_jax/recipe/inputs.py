"""Opens the data of a run, for the training step and for evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import logging
from typing import Any

from vit_jax.data import token_labels
from vit_jax.data.classes import ClassMismatch
from vit_jax.data.prefetch import prefetch
from vit_jax.data.records import PSEUDO_SPLIT
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.renumbered import Renumbered, with_classes
from vit_jax.data.sources.source import Concat, Source
from vit_jax.data.splits import NoSplit
from vit_jax.evaluation.exact import Evaluator
from vit_jax.evaluation.fewshot import FewshotProbe
from vit_jax.parallel.mesh import batch_slice, put_batch, put_replicated
from vit_jax.recipe.build import Run
from vit_jax.recipe.data import make_device_cache, train_batches
from vit_jax.recipe.keys import (
  ConfigError,
  decoding,
  host_shape,
  preprocessing,
)
from vit_jax.recipe.sections import Config

# If a recipe names no eval sets, the first of these splits that exists is used.
log = logging.getLogger(__name__)
TEST_SPLITS = ('test', 'validation', 'val')


def open_train_source(config: Config) -> Source:
  """Opens the training images of a recipe, the pseudo-labeled ones last.

  Raises:
    ConfigError: the pseudo-labels have other classes.
    ValueError: there is no such source or split.
  """
  data = config.data
  source = _open(config, data.source, data.split, data.dir)
  if not data.pseudo_dir:
    return source
  pseudo = _open(config, 'packed', PSEUDO_SPLIT, data.pseudo_dir)
  names = [s.class_names for s in (source, pseudo)]
  differ = None not in names and names[0] != names[1]
  if source.num_classes != pseudo.num_classes or differ:
    raise ConfigError(
      f'data.pseudo_dir={data.pseudo_dir!r} has {pseudo.num_classes} classes, '
      f'and {source.name} has {source.num_classes}'
      + (' with other names' if differ else '')
      + ': label the images with a teacher that was trained on this data'
    )
  return Concat([source, pseudo], f'{source.name} + {pseudo.name}')


def open_eval_sets(
  config: Config,
  num_classes: int,
  classes: Sequence[str] | None = None,
  say: Callable[[str], None] = log.warning,
) -> dict[str, Source]:
  """Opens the eval sets of a recipe; by default the test split of its source.

  Args:
    config: the recipe.
    num_classes: number of classes of the model.
    classes: names of the outputs of the model; None if they are not known.
    say: prints or logs a line.

  Returns:
    {name: source}, with classes numbered as the outputs. It is empty where
    nothing is held out because of data.holdout=0.

  Raises:
    ConfigError: there is no eval set, or one has other classes than the model.
    ValueError: there is no such source or split.
  """
  data = config.data
  sets = {}
  for name, spec in config.eval.sets.items():
    unknown = set(spec) - {'source', 'dir', 'split'}
    if unknown:
      raise ConfigError(
        f'eval.sets.{name}: unknown key {min(unknown)!r}; allowed: source, '
        'dir, split'
      )
    sets[name] = _open(
      config,
      spec.get('source', data.source),
      spec.get('split', 'test'),
      spec.get('dir', data.dir),
    )
  if not sets:
    test = _open_test_split(config)
    if test is None:
      say(
        'no images are held out (data.holdout=0) and '
        f'{data.dir or data.source} has no test split: nothing is evaluated'
      )
      return {}
    sets['test'] = test
  how = 'numbers' if data.match_classes == 'numbers' else 'names'
  for name, source in sets.items():
    try:
      sets[name] = with_classes(
        source,
        num_classes,
        classes,
        'the model',
        how=how,
        fix='Rename the folders of classes, or compare no names, with '
        "data.match_classes='numbers'",
        say=say,
      )
    except ClassMismatch as e:
      raise ConfigError(f'eval set {name!r}: {e}') from e
  return sets


def _open_test_split(config: Config) -> Source | None:
  """The test split; None if there is none and data.holdout is 0."""
  data, errors = config.data, []
  for split in TEST_SPLITS:
    try:
      return _open(config, data.source, split, data.dir)
    except NoSplit as e:
      errors.append(str(e))
  if data.holdout == 0:
    return None
  raise ConfigError(
    f'data.source={data.source!r} has none of the splits '
    f'{", ".join(TEST_SPLITS)}; add a test split to the data, name '
    'eval.sets, or evaluate nothing with data.holdout=0. '
    f'({errors[0]})'
  )


def _open(config: Config, name: str, split: str, directory: str) -> Source:
  return open_source(
    name,
    split=split,
    data_dir=directory,
    holdout=config.data.holdout,
    flat=config.data.flat,
    num_classes=config.data.num_classes,
    num_examples=config.data.num_examples,
    image_size=preprocessing(config).size,
  )


@dataclasses.dataclass(frozen=True)
class TrainInput:
  """The batches of a run, and what the training step needs to read them.

  Attributes:
    batches: (number of finished steps) -> iterator over the batches of the
      following steps, on the devices. The caller closes it.
    extras: arrays on the devices that the step reads besides its batch.
    load_batch: see `vit_jax.training.step.make_train_step`.
  """

  batches: Callable[[int], Any]
  extras: dict[str, Any]
  load_batch: Callable | None = None


def train_input(run: Run, source: Source) -> TrainInput:
  """Takes images from the host, or from the devices if they hold the data.

  Args:
    run: what `build` returned.
    source: the training data.

  Raises:
    ValueError: the token labels are of other data or do not fit the model, or a
      key of section `data` has a value that is not allowed.
  """
  config, mesh = run.config, run.mesh
  labels = None
  if config.data.labels:
    if isinstance(source, Renumbered):
      raise ConfigError(
        f'data.labels={config.data.labels!r} has the class numbers of '
        f'{source.name}, which the weights number otherwise: start with '
        "data.match_classes='new'"
      )
    labels = token_labels.open_for_training(
      config.data.labels,
      run.model,
      source,
      run.num_classes,
      image_size=preprocessing(config).size,
      host_size=host_shape(config),
      swap_axes=config.data.labels_swap_axes,
    )
  else:
    cached = make_device_cache(
      config, source, put=lambda x: put_replicated(x, mesh)
    )
    if cached is not None:
      return _cached_input(run, *cached)

  def batches(first_step: int) -> Any:
    index, count = batch_slice(mesh)
    host = train_batches(
      config,
      source,
      start_step=first_step,
      process_index=index,
      process_count=count,
      token_labels=labels,
    )
    put = lambda batch: put_batch(batch, mesh)
    return prefetch(host, put, config.data.prefetch)

  return TrainInput(batches, {})


def _cached_input(run: Run, cache: Any, make_batch: Callable) -> TrainInput:
  """The host sends the numbers of the images; the step gathers the images."""

  def host_batches(first_step: int) -> Iterator[Any]:
    index, count = batch_slice(run.mesh)
    for step in range(first_step, run.total_steps):
      yield {'indices': cache.indices(step).reshape(count, -1)[index]}

  def batches(first_step: int) -> Any:
    put = lambda batch: put_batch(batch, run.mesh)
    return prefetch(host_batches(first_step), put, run.config.data.prefetch)

  def load_batch(batch, extras, key):
    return make_batch(extras['cache'], batch['indices'], key)

  return TrainInput(batches, {'cache': cache.arrays}, load_batch)


def make_evaluator(run: Run, sets: Mapping[str, Source]) -> Evaluator:
  """The exact evaluation of a run.

  Args:
    run: what `build` returned.
    sets: eval sets by name.
  """
  config = run.config
  return Evaluator(
    run.model,
    run.mesh,
    sets,
    num_classes=run.num_classes,
    preprocessing=preprocessing(config),
    host_size=host_shape(config),
    decoding=decoding(config),
    loss=config.loss.name,
    batch_size=config.eval.batch_size or config.data.batch_size,
    threads=config.data.threads,
    max_bad_fraction=config.data.max_bad_fraction,
  )


def make_probe(run: Run) -> FewshotProbe | None:
  """The few-shot probe of a run; None without `eval.fewshot.shots`.

  Raises:
    ConfigError: the test images have other classes than the training images.
    ValueError: there is no such source or split.
  """
  config = run.config
  data = config.eval.fewshot
  if not data.shots:
    return None
  train, test = (
    _open(
      config,
      data.source or config.data.source,
      split,
      data.dir or config.data.dir,
    )
    for split in (data.train, data.test)
  )
  try:
    test = with_classes(test, train.num_classes, train.class_names, train.name)
  except ClassMismatch as e:
    raise ConfigError(f'eval.fewshot: {e}') from e
  return FewshotProbe(
    run.model,
    run.mesh,
    train,
    test,
    preprocessing=preprocessing(config),
    shots=data.shots,
    batch_size=config.eval.batch_size or config.data.batch_size,
    decoding=decoding(config),
    threads=config.data.threads,
  )
