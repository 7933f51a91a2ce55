"""Exact evaluation: every example of every eval set counts exactly once.

Sets are padded to whole batches with a mask; sums are taken on the devices and
added on the host, so the result does not depend on batch size, devices or
hosts (up to float32 rounding of the loss).
"""

from absl import logging
import jax

from vit_jax import metrics, sharding, step as step_lib, writers
from vit_jax.config import ConfigError, image_shape
from vit_jax.data import pipeline, sources

TEST_SPLITS = ('test', 'validation', 'val')


def host_shape(config) -> tuple[int, int]:
  """(height, width) at which images leave the host."""
  size = config.data.device_resize
  return (size, size) if size else image_shape(config)


def open_eval_sets(config, num_classes: int) -> dict[str, sources.Source]:
  """The recipe's eval sets by name; else the test split of the train source.

  ConfigError if there is none, or if its class count is not the model's.
  """
  data = config.data
  found = {}
  for name, spec in config.eval.sets.items():
    unknown = set(spec) - {'source', 'dir', 'split'}
    if unknown:
      raise ConfigError(f'eval.sets.{name}: unknown key {sorted(unknown)[0]!r};'
                        ' allowed: source, dir, split')
    found[name] = sources.open_source(
        spec.get('source', data.source), split=spec.get('split', 'test'),
        data_dir=spec.get('dir', data.dir), holdout=data.holdout,
        num_classes=data.num_classes, num_examples=data.num_examples,
        image_size=image_shape(config)[0])
  if not found:
    errors = []
    for split in TEST_SPLITS:
      try:
        found['test'] = sources.open_source(
            data.source, split=split, data_dir=data.dir, holdout=data.holdout,
            num_classes=data.num_classes, num_examples=data.num_examples,
            image_size=image_shape(config)[0])
        break
      except ValueError as e:
        errors.append(str(e))
    else:
      raise ConfigError(
          f'data.source={data.source!r} has none of the splits '
          f'{", ".join(TEST_SPLITS)}; name eval.sets. ({errors[0]})')
  for name, source in found.items():
    if source.num_classes != num_classes:
      raise ConfigError(
          f'eval set {name!r} has {source.num_classes} classes, the model '
          f'{num_classes}: they must be the same classes')
  return found


class Evaluator:
  """Evaluates variables on all sets; compiled once.

  Args:
    config: the recipe.
    model: the Linen module.
    mesh: of the run.
    sets: name -> source.
    num_classes: of the head.
  """

  def __init__(self, config, model, mesh, sets, num_classes: int):
    self._config, self._mesh, self._sets = config, mesh, sets
    shards = sharding.batch_shards(mesh)
    wanted = config.eval.batch_size or config.data.batch_size
    # Whole parts for every device; the mask takes care of the rest.
    self._batch_size = max(1, wanted // shards) * shards
    self._step = jax.jit(step_lib.make_eval_step(config, model, num_classes),
                         out_shardings=sharding.replicated(mesh))

  def __call__(self, variables) -> dict[str, dict[str, float]]:
    """{set: {'top1', 'top5', 'loss', 'examples'}}."""
    results = {}
    index, count = sharding.batch_slice(self._mesh)
    for name, source in self._sets.items():
      batches = pipeline.eval_batches(
          source, batch_size=self._batch_size,
          image_size=host_shape(self._config),
          crop=self._config.eval.crop or 'squash',
          interpolation=self._config.eval.interpolation,
          threads=self._config.data.threads,
          process_index=index, process_count=count,
          max_bad_fraction=self._config.data.max_bad_fraction)
      steps = -(-len(source) // self._batch_size)
      sums = []
      for batch in writers.progress_bar(batches, steps, f'evaluating {name}'):
        batch = {k: batch[k] for k in ('image', 'label', 'mask')}
        sums.append(self._step(
            variables, sharding.put_batch(batch, self._mesh)))
      results[name] = metrics.summarize(
          metrics.merge(*jax.device_get(sums)))
      left_out = len(source) - results[name]['examples']
      if left_out:  # corrupt images, which the pipeline has named in the log
        logging.warning('eval set %s: %d of %d images are corrupt and were '
                        'left out', name, left_out, len(source))
    return results
