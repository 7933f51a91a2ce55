"""Exact evaluation: every example of every set counts once."""

from absl import logging
import jax
import jax.numpy as jnp

from vit_jax.data import loader
from vit_jax.parallel.mesh import (
  batch_shards,
  batch_slice,
  put_batch,
  replicated,
)
from vit_jax.recipe.build import host_shape
from vit_jax.training import augment, losses, metrics
from vit_jax.training.progress import progress_bar


def make_eval_step(config, model, num_classes: int):
  """Builds eval_step(variables, batch) -> sums over the real examples.

  The batch has 'image' uint8, 'label' and 'mask' (B,), 0 for padding.
  """
  dtype = jnp.dtype(model.dtype)

  def eval_step(variables, batch):
    images = augment.prepare_eval(batch['image'], config.data, dtype)
    logits, _ = model.apply(variables, images, train=False)
    labels = batch['label']
    targets = (
      labels if labels.ndim > 1 else augment.one_hot(labels, num_classes)
    )
    xent = {'softmax': losses.softmax_xent, 'sigmoid': losses.sigmoid_xent}
    per_example = xent[config.loss.name](logits, targets)
    return metrics.batch_metrics(logits, labels, per_example, batch['mask'])

  return eval_step


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
    shards = batch_shards(mesh)
    wanted = config.eval.batch_size or config.data.batch_size
    # Whole parts for every device; the mask takes care of the rest.
    self._batch_size = max(1, wanted // shards) * shards
    self._step = jax.jit(
      make_eval_step(config, model, num_classes), out_shardings=replicated(mesh)
    )

  def __call__(self, variables) -> dict[str, dict[str, float]]:
    """{set: {'top1', 'top5', 'loss', 'examples'}}."""
    results = {}
    index, count = batch_slice(self._mesh)
    for name, source in self._sets.items():
      batches = loader.eval_batches(
        source,
        batch_size=self._batch_size,
        image_size=host_shape(self._config),
        crop=self._config.eval.crop or 'squash',
        interpolation=self._config.eval.interpolation,
        threads=self._config.data.threads,
        process_index=index,
        process_count=count,
        max_bad_fraction=self._config.data.max_bad_fraction,
      )
      steps = -(-len(source) // self._batch_size)
      sums = []
      for batch in progress_bar(batches, steps, f'evaluating {name}'):
        batch = {k: batch[k] for k in ('image', 'label', 'mask')}
        sums.append(self._step(variables, put_batch(batch, self._mesh)))
      results[name] = metrics.summarize(metrics.merge(*jax.device_get(sums)))
      left_out = len(source) - results[name]['examples']
      if left_out:  # corrupt images, which the pipeline has named in the log
        logging.warning(
          'eval set %s: %d of %d images are corrupt and were left out',
          name,
          left_out,
          len(source),
        )
    return results
