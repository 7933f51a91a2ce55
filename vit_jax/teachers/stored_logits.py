"""A teacher's logits, computed once and read in training.

    vit-jax teacher-logits WEIGHTS --source SOURCE --data-dir DIR -o LOGITS

The directory LOGITS is then given as `loss.teacher_weights`. The logits are
those of whole images without augmentation, so the teacher does not see the
crops and flips of the student (the "fixed teacher" of arXiv:2106.05237, which
finds that consistent views are better), and mixup and CutMix are not possible.
"""

from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from vit_jax.data import loader
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source
from vit_jax.files import write_atomically
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.loading import load_classifier
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
from vit_jax.training.progress import progress_bar

LOGITS, META = 'logits.npy', 'logits.json'
DTYPES = ('float32', 'float16')


def is_stored(path: str | os.PathLike) -> bool:
  """Whether a path is a directory of stored logits."""
  return (pathlib.Path(path) / META).exists()


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """What `write_logits` wrote beside the logits."""
  return json.loads((pathlib.Path(path) / META).read_text())


def check_data(
  path: str | os.PathLike,
  meta: dict[str, Any],
  fingerprint: str | None,
  data: str,
) -> None:
  """ConfigError if the logits are those of other examples.

  Args:
    path, meta: the stored logits.
    fingerprint: of the training source; None if it is not known.
    data: the training source in words.
  """
  if fingerprint is not None and fingerprint != meta['fingerprint']:
    raise ConfigError(
      f'{path} has the logits of {meta["data"]} ({meta["examples"]} examples), '
      f'which are not the training examples ({data}): make them again with '
      '`vit-jax teacher-logits`'
    )


def check_not_mixed(
  path: str | os.PathLike, mixup: float, cutmix: float
) -> None:
  """ConfigError if the recipe mixes images, which stored logits do not know."""
  if mixup or cutmix:
    raise ConfigError(
      f'{path} has logits of single images, but data.mixup={mixup} and '
      f'data.cutmix={cutmix} mix them: set both to 0, or give the teacher '
      'itself as loss.teacher_weights'
    )


def stored_function(
  variables: Any, images: jax.Array, batch: dict[str, jax.Array]
) -> jax.Array:
  """Logits (B, C) float32 of the examples `batch['index']` (B,)."""
  del images
  logits = jnp.take(variables['logits'], batch['index'], axis=0)
  return jax.lax.stop_gradient(logits.astype(jnp.float32))


def _rows(examples: int, mesh: Mesh) -> int:
  """Rows of the table on the mesh: a multiple of the devices that share it."""
  shards = batch_shards(mesh)
  return -(-examples // shards) * shards


def put_logits(path: str | os.PathLike, mesh: Mesh) -> jax.Array:
  """The table of logits on the mesh, split by rows, padded with zeros."""
  table = np.load(pathlib.Path(path) / LOGITS, mmap_mode='r')
  rows = _rows(len(table), mesh)

  def block(index):
    values = table[index]
    missing = len(range(*index[0].indices(rows))) - len(values)
    return np.pad(values, ((0, missing), (0, 0)))

  return jax.make_array_from_callback(
    (rows, table.shape[1]), NamedSharding(mesh, BATCH), block
  )


def describe_logits(
  path: str | os.PathLike, meta: dict[str, Any], mesh: Mesh
) -> jax.ShapeDtypeStruct:
  """The shape, dtype and sharding of what `put_logits` returns."""
  table = np.load(pathlib.Path(path) / LOGITS, mmap_mode='r')
  return jax.ShapeDtypeStruct(
    (_rows(meta['examples'], mesh), meta['num_classes']),
    table.dtype,
    sharding=NamedSharding(mesh, BATCH),
  )


def forward(
  classifier: Classifier,
  source: Source,
  *,
  batch_size: int = 64,
  threads: int = 4,
  max_bad_fraction: float = 0.001,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Runs a model over all examples of a source, as the model is tested.

  Args:
    classifier: see `load_classifier`; runs on all local devices.
    source: examples, in their order.
    batch_size: of all devices together; rounded to a multiple of their number.
    threads: threads that read and decode.
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
    classifier.preprocessing,
    batch_size=batch_size,
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
  weights: str | os.PathLike,
  out: str | os.PathLike,
  *,
  source: str,
  data_dir: str = '',
  split: str = 'train',
  holdout: float = 0.1,
  batch_size: int = 64,
  threads: int = 4,
  dtype: str = 'float32',
  **options: Any,
) -> dict[str, Any]:
  """Writes the logits of a teacher for every training example.

  Args:
    weights: what `load_classifier` takes.
    out: directory for `logits.npy` (examples, classes) and `logits.json`.
    source, data_dir, split, holdout: the recipe's data.source, data.dir,
      data.split and data.holdout.
    batch_size, threads: see `forward`.
    dtype: of the file, one of DTYPES.
    **options: of `load_classifier`.

  Returns:
    The metadata in `logits.json`.

  Raises:
    ValueError: another dtype, a teacher without a head or with other classes.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}; allowed: {", ".join(DTYPES)}')
  classifier = load_classifier(weights, **options)
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
  # The metadata is written last, so that its presence means a whole table.
  (out / META).unlink(missing_ok=True)
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
  write_atomically(out / META, json.dumps(meta))
  return meta
