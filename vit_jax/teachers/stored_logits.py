"""A teacher's logits that are computed once and read in training.

    vit-jax teacher-logits WEIGHTS --source SOURCE --data-dir DIR -o LOGITS

The directory LOGITS is then the value of `loss.teacher_weights`. The logits are
for whole images without augmentation, and not for the crops and flips that the
student gets. arXiv:2106.05237 calls this a fixed teacher, and finds that a
teacher with the student's images is better. Mixup and CutMix are not possible.
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

from vit_jax import files
from vit_jax.data import loader
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source
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
  """The metadata that `write_logits` returned and wrote."""
  return json.loads(files.read_text(pathlib.Path(path) / META))


def check_data(
  path: str | os.PathLike,
  meta: dict[str, Any],
  source: Source | None,
  data: str,
) -> None:
  """Checks that stored logits are those of the training examples.

  Args:
    path: directory of the stored logits.
    meta: their metadata.
    source: the training images; None if they are not known.
    data: name of the training source, for the message.

  Raises:
    ConfigError: the logits are of other examples.
  """
  if source is not None and not source.has_fingerprint(meta['fingerprint']):
    raise ConfigError(
      f'{path} has the logits of {meta["data"]} ({meta["examples"]} examples), '
      f'which are not the training examples ({data}): compute the logits again '
      'with `vit-jax teacher-logits`'
    )


def check_not_mixed(
  path: str | os.PathLike, mixup: float, cutmix: float
) -> None:
  """Raises ConfigError if mixup or CutMix is on, as logits are of one image."""
  if mixup or cutmix:
    raise ConfigError(
      f'{path} has logits of single images, but data.mixup={mixup} and '
      f'data.cutmix={cutmix} mix them: set both to 0, or give the teacher '
      'itself as loss.teacher_weights'
    )


def stored_function(
  variables: Any, images: jax.Array, batch: dict[str, jax.Array]
) -> jax.Array:
  """The stored logits of a batch, as a `live.TeacherFunction`.

  Args:
    variables: {'logits': the table}, see `put_logits`.
    images: not used.
    batch: 'index' (B,) has the numbers of the examples.

  Returns:
    float32 (B, C), without a gradient.
  """
  del images
  logits = jnp.take(variables['logits'], batch['index'], axis=0)
  return jax.lax.stop_gradient(logits.astype(jnp.float32))


def _rows(examples: int, mesh: Mesh) -> int:
  """Number of rows of the table on a mesh: a multiple of its devices."""
  shards = batch_shards(mesh)
  return -(-examples // shards) * shards


def _open_table(path: str | os.PathLike) -> np.ndarray:
  """The logits, which are read from the file when they are needed."""
  table = pathlib.Path(path) / LOGITS
  try:
    files.check_regular(table)
    return np.load(table, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError) as e:
    raise ConfigError(
      f'{table} cannot be read ({e}): copy it again, or compute the logits '
      'again with `vit-jax teacher-logits`'
    ) from e


def put_logits(path: str | os.PathLike, mesh: Mesh) -> jax.Array:
  """Loads the table of logits (examples, C) onto a mesh, split by rows.

  It is padded with rows of zeros, so that the devices divide the number of
  rows.

  Args:
    path: directory of the stored logits.
    mesh: mesh of the run.
  """
  table = _open_table(path)
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
  table = _open_table(path)
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
  """Runs a model over all examples of a source, with evaluation preprocessing.

  Args:
    classifier: the model, which runs on all local devices.
    source: the examples.
    batch_size: number of images in a batch, which all devices share; it is
      rounded to a multiple of their number.
    threads: number of threads that read and decode images.
    max_bad_fraction: largest share of images that cannot be decoded. Such
      images are left out.

  Yields:
    (numbers of the examples (n,), logits (n, C) float32), in order, with n up
    to batch_size.
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
  match_classes: str = 'names',
  flat: bool = False,
  **options: Any,
) -> dict[str, Any]:
  """Computes and writes the logits of a teacher for every training example.

  Args:
    weights: the first argument of `load_classifier`.
    out: directory for `logits.npy` (examples, classes) and `logits.json`.
    source, data_dir, split, holdout: the values of data.source, data.dir,
      data.split and data.holdout in the student's recipe.
    batch_size, threads: as in `forward`.
    dtype: dtype of the file, one of DTYPES.
    match_classes, flat: the values of data.match_classes and data.flat.
    **options: other arguments of `load_classifier`.

  Returns:
    The metadata in `logits.json`.

  Raises:
    ValueError: the dtype is not allowed, or the teacher has no head.
    ConfigError: the teacher has other classes than the data.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}; allowed: {", ".join(DTYPES)}')
  classifier = load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(
      f'{weights} has no head, so it cannot be a teacher: give weights that '
      'have one'
    )
  data = open_source(
    source, split=split, data_dir=data_dir, holdout=holdout, flat=flat
  )
  check_classes(
    weights,
    classifier.num_classes,
    classifier.classes,
    data.num_classes,
    data.class_names,
    match_classes,
  )
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  # The metadata is written last, so that a table with metadata is complete.
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
  files.write_atomically(out / META, json.dumps(meta))
  return meta
