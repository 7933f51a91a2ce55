"""A teacher's logits that are computed once and read in training.

    vit-jax teacher-logits WEIGHTS --source SOURCE --data DIR -o LOGITS

The directory LOGITS is then the value of `loss.teacher_weights`. The logits are
for whole images without augmentation, and not for the crops and flips that the
student gets. arXiv:2106.05237 calls this a fixed teacher, and finds that a
teacher with the student's images is better. Mixup and CutMix are not possible.
"""

from collections.abc import Iterator
import io
import json
import os
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from vit_jax.data import loader
from vit_jax.data.sources.opening import open_source
from vit_jax.data.sources.source import Source, Subset
from vit_jax.files import (
  as_path,
  check_regular,
  is_remote,
  open_atomically,
  read_text,
  write_atomically,
)
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.jobs import ALONE, Job, Share, identify
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

LOGITS, META = 'logits.npy', 'logits.json'
# Examples of a shard, which a run that is killed loses at most.
SHARD_SIZE = 8192
DTYPES = ('float32', 'float16')


def is_stored(path: str | os.PathLike) -> bool:
  """Whether a path is a directory of stored logits."""
  return bool(path) and (as_path(path) / META).exists()


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """The metadata that `write_logits` returned and wrote."""
  return json.loads(read_text(as_path(path) / META))


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


class _Table:
  """The stored logits (examples, C), of which rows are read from their files.

  Args:
    path: directory of the stored logits.
    meta: their metadata.
  """

  def __init__(self, path: str | os.PathLike, meta: dict[str, Any]):
    self._directory = as_path(path)
    self.shape = meta['examples'], meta['num_classes']
    # Version 0.1.0 wrote one file.
    self._files = meta.get('shards', [LOGITS])
    self._rows = meta.get('shard_size', meta['examples'])
    self._last: tuple[int, Any] = (-1, None)  # the shard that was read last
    self.dtype = self.rows(0, 1).dtype

  def rows(self, start: int, stop: int) -> np.ndarray:
    """The rows [start, stop)."""
    blocks = []
    for shard in range(start // self._rows, -(-stop // self._rows)):
      first = shard * self._rows
      if self._last[0] != shard:
        path = self._directory / self._files[shard]
        self._last = shard, _read_table(path)
      blocks.append(self._last[1][max(start - first, 0) : stop - first])
    if not blocks:
      return np.zeros((0, self.shape[1]), self.dtype)
    return np.concatenate(blocks)


def _read_table(path: epath.Path) -> np.ndarray:
  """An array in a .npy file; of a local file only the rows that are used."""
  try:
    if is_remote(path):
      return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    check_regular(path)
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError) as e:
    raise ConfigError(
      f'{path} cannot be read ({e}): copy it again, or compute the logits '
      'again with `vit-jax teacher-logits`'
    ) from e


def put_logits(path: str | os.PathLike, mesh: Mesh) -> jax.Array:
  """Loads the table of logits (examples, C) onto a mesh, split by rows.

  It is padded with rows of zeros, so that the devices divide the number of
  rows. A process reads the rows of its devices only.

  Args:
    path: directory of the stored logits.
    mesh: mesh of the run.
  """
  table = _Table(path, read_metadata(path))
  rows = _rows(table.shape[0], mesh)

  def block(index):
    start, stop, _ = index[0].indices(rows)
    last = min(stop, table.shape[0])
    values = table.rows(start, last) if start < last else table.rows(0, 0)
    missing = stop - start - len(values)
    return np.pad(values, ((0, missing), (0, 0)))

  return jax.make_array_from_callback(
    (rows, table.shape[1]), NamedSharding(mesh, BATCH), block
  )


def describe_logits(
  path: str | os.PathLike, meta: dict[str, Any], mesh: Mesh
) -> jax.ShapeDtypeStruct:
  """The shape, dtype and sharding of what `put_logits` returns."""
  table = _Table(path, meta)
  return jax.ShapeDtypeStruct(
    (_rows(meta['examples'], mesh), meta['num_classes']),
    table.dtype,
    sharding=NamedSharding(mesh, BATCH),
  )


class Forward:
  """Runs a model over examples, with evaluation preprocessing.

  Args:
    classifier: the model, which runs on all local devices.
    batch_size: number of images in a batch, which all devices share; it is
      rounded to a multiple of their number.
    threads: number of threads that read and decode images.
    max_bad_fraction: largest share of images that cannot be decoded. Such
      images are left out.
  """

  def __init__(
    self,
    classifier: Classifier,
    *,
    batch_size: int = 64,
    threads: int = 4,
    max_bad_fraction: float = 0.001,
  ):
    self._mesh = make_mesh('data', devices=jax.local_devices())
    self._preprocessing = classifier.preprocessing
    self._batch_size = max(1, round(batch_size / self._mesh.size))
    self._batch_size *= self._mesh.size
    self._threads, self._max_bad = threads, max_bad_fraction
    self._variables = put_replicated(classifier.variables, self._mesh)
    self._step = jax.jit(
      lambda v, x: classifier.forward(v, x)[0],
      out_shardings=replicated(self._mesh),
    )

  def __call__(
    self, source: Source, start: int, stop: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs the model over the examples [start, stop) of a source.

    Yields:
      (numbers of the examples (n,), counted from `start`, logits (n, C)
      float32), in order, with n up to the batch size.
    """
    with loader.eval_batches(
      Subset(source, start, stop, source.name),
      self._preprocessing,
      batch_size=self._batch_size,
      threads=self._threads,
      max_bad_fraction=self._max_bad,
    ) as batches:
      for batch in batches:
        images = put_batch(batch['image'], self._mesh)
        logits = jax.device_get(self._step(self._variables, images))
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
  share: Share = ALONE,
  **options: Any,
) -> dict[str, Any]:
  """Computes and writes the logits of a teacher for every training example.

  Args:
    weights: the first argument of `load_classifier`.
    out: directory for the shards (examples, classes) and `logits.json`.
    source, data_dir, split, holdout: the values of data.source, data.dir,
      data.split and data.holdout in the student's recipe.
    batch_size, threads: as in `forward`.
    dtype: dtype of the file, one of DTYPES.
    match_classes, flat: the values of data.match_classes and data.flat.
    share: which of several processes this one is. A run that was stopped goes
      on where it was.
    **options: other arguments of `load_classifier`.

  Returns:
    The metadata in `logits.json`.

  Raises:
    ValueError: the dtype is not allowed, the teacher has no head, or the
      directory has logits of another teacher or other data.
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
  out = as_path(out)
  meta = {
    'teacher': str(weights),
    'model': classifier.name,
    'data': data.name,
    'examples': len(data),
    'fingerprint': data.fingerprint,
    'num_classes': classifier.num_classes,
    'classes': classifier.classes,
  }
  plan = identify(classifier)
  plan.update(fingerprint=data.fingerprint, dtype=dtype)
  how = dict[str, Any](shard_size=SHARD_SIZE, suffix='.npy', share=share)
  job = Job(out, len(data), plan, **how)
  forward = Forward(classifier, batch_size=batch_size, threads=threads)
  _write_shards(job, forward, data, (classifier.num_classes, dtype))
  meta = {**meta, 'shards': job.names, 'shard_size': job.shard_size}
  # The metadata is written last, so that a table with metadata is complete.
  if job.is_complete():
    write_atomically(out / META, json.dumps(meta))
  return meta


def _write_shards(
  job: Job, forward: Forward, data: Source, columns: tuple[int, str]
) -> None:
  """Writes the missing tables of a job, of `columns` (number, dtype).

  The logits of an image that cannot be read are zeros; training skips it.
  """
  with job.progress('teacher logits') as progress:
    for shard in job.open_shards():
      start, stop = job.bounds(shard)
      number, dtype = columns
      table = np.zeros((stop - start, number), dtype)
      for index, logits in forward(data, start, stop):
        table[index] = logits
        progress.advance(len(index))
      with open_atomically(job.path(shard), 'wb') as file:
        np.save(file, table)
