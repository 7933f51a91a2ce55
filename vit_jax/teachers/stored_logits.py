"""Teacher's logits, written once and read in training."""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from vit_jax.data import loader
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source
from vit_jax.inference import classifier as classifier_lib
from vit_jax.parallel.mesh import (
  BATCH,
  batch_shards,
  make_mesh,
  put_batch,
  put_replicated,
  replicated,
)
from vit_jax.recipe.keys import ConfigError
from vit_jax.teachers.classes import check_classes
from vit_jax.teachers.live import LOGITS, META
from vit_jax.training.progress import progress_bar


def is_stored(path) -> bool:
  """Whether a path is a directory of stored logits."""
  return (pathlib.Path(path) / META).exists()


# --- Stored logits ----------------------------------------------------------


def _stored(config, mesh, num_classes, class_names, fingerprint):
  path = pathlib.Path(config.loss.teacher_weights)
  meta = json.loads((path / META).read_text())
  check_classes(
    path, meta['num_classes'], meta['classes'], num_classes, class_names
  )
  if fingerprint is not None and fingerprint != meta['fingerprint']:
    raise ConfigError(
      f'{path} has the logits of {meta["data"]} ({meta["examples"]} '
      f'examples), which is not what data.source={config.data.source!r}, '
      f'data.split={config.data.split!r} gives now: make them again with '
      '`vit-jax teacher-logits`'
    )
  if config.data.mixup or config.data.cutmix:
    raise ConfigError(
      f'{path} has logits of single images, but data.mixup='
      f'{config.data.mixup} and data.cutmix={config.data.cutmix} mix them: '
      'set both to 0, or give the teacher itself as loss.teacher_weights'
    )
  table = np.load(path / LOGITS, mmap_mode='r')
  shards = batch_shards(mesh)
  rows = -(-len(table) // shards) * shards

  def block(index):
    """Rows of the table, with zeros after its end."""
    part = table[index]
    missing = len(range(*index[0].indices(rows))) - len(part)
    return np.pad(part, ((0, missing), (0, 0)))

  array = jax.make_array_from_callback(
    (rows, table.shape[1]), NamedSharding(mesh, BATCH), block
  )

  def teacher(variables, images, batch):
    del images
    logits = jnp.take(variables['logits'], batch['index'], axis=0)
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher, {'logits': array}


def forward(
  classifier: classifier_lib.Classifier,
  source: Source,
  *,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.001,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Runs a model over a source in its order, as the model is tested.

  Args:
    classifier: of `predict.load_classifier`; runs on all local devices.
    source: what to run over.
    batch_size: of all devices together; rounded to a multiple of their number.
    threads: that read and decode.
    max_bad_fraction: of images that cannot be decoded; they are left out.

  Yields:
    (indices (n,), logits (n, C) float32) of up to batch_size images.
  """
  mesh = make_mesh('data', devices=jax.local_devices())
  batch_size = max(1, round(batch_size / mesh.size)) * mesh.size
  variables = put_replicated(classifier.variables, mesh)
  step = jax.jit(
    lambda v, x: classifier.forward(v, x)[0], out_shardings=replicated(mesh)
  )
  with loader.eval_batches(
    source,
    batch_size=batch_size,
    image_size=classifier.image_size,
    crop=classifier.crop,
    interpolation=classifier.interpolation,
    threads=threads,
    max_bad_fraction=max_bad_fraction,
  ) as batches:
    for batch in progress_bar(
      batches, len(batches), f'running {classifier.name}'
    ):
      logits = jax.device_get(step(variables, put_batch(batch['image'], mesh)))
      real = batch['mask'] > 0
      yield batch['index'][real], np.asarray(logits, np.float32)[real]


def write_logits(
  weights,
  out,
  *,
  source: str,
  data_dir: str = '',
  split: str = 'train',
  holdout: float = 0.1,
  batch_size: int = 64,
  threads: int = 4,
  dtype: str = 'float32',
  **options,
) -> dict[str, Any]:
  """Writes the logits of a teacher for every training example.

  Args:
    weights: what `predict.load_classifier` takes.
    out: directory for `logits.npy` (examples, classes) and `logits.json`.
    source, data_dir, split, holdout: the recipe's data.source, data.dir,
      data.split and data.holdout.
    batch_size, threads: see `forward`.
    dtype: of the file, 'float32' or 'float16'.
    **options: of `predict.load_classifier`.

  Returns:
    The metadata in `logits.json`.
  """
  if dtype not in ('float32', 'float16'):
    raise ValueError(f'dtype={dtype!r}; allowed: float32, float16')
  classifier = classifier_lib.load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(f'{weights} has no head: a teacher must name classes')
  data = open_source(source, split=split, data_dir=data_dir, holdout=holdout)
  check_classes(
    weights,
    classifier.num_classes,
    classifier.classes,
    data.num_classes,
    data.class_names,
  )
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  (out / META).unlink(missing_ok=True)  # written last: marks a whole table
  table = np.lib.format.open_memmap(
    out / LOGITS, 'w+', dtype, (len(data), classifier.num_classes)
  )
  for index, logits in forward(
    classifier, data, batch_size=batch_size, threads=threads
  ):
    table[index] = logits
  table.flush()
  meta = {
    'teacher': str(weights),
    'model': classifier.name,
    'data': data.name,
    'examples': len(data),
    'fingerprint': data.fingerprint,
    'num_classes': classifier.num_classes,
    'classes': classifier.classes,
  }
  (out / META).write_text(json.dumps(meta))
  return meta
