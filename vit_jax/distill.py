"""The teacher of distillation (arXiv:2012.12877): a live model, or its logits.

A live teacher runs inside the jitted train step, on the very images of the
student: augmented, mixed, erased. Any registered model with weights will do,

    config.loss.teacher_weights = 'runs/teacher'           # knows its model
    config.loss.teacher, config.loss.teacher_weights = 'bit_r50x1', 'BiT.npz'

and `teacher_weights = 'random'` takes fresh parameters, for smoke runs and
benchmarks. Stored logits are computed once,

    vit-jax teacher-logits WEIGHTS --source SOURCE --data-dir DIR -o LOGITS

and given as `teacher_weights = LOGITS`. They are of whole, unaugmented images,
so crops and flips of the student's view do not reach them (the "fixed teacher"
of arXiv:2106.05237, which finds consistent views better), and they cannot go
with mixup or CutMix.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging
import flax
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from vit_jax import augment, predict, sharding, writers
from vit_jax.config import ConfigError, image_shape
from vit_jax.data import pipeline, sources
from vit_jax.models.registry import create_model, model_info, NORMALIZATION

LOGITS, META = 'logits.npy', 'logits.json'  # of a directory of stored logits
RANDOM = 'random'


def make_teacher(config, mesh, num_classes: int, class_names=None,
                 fingerprint: str | None = None) -> tuple[Callable, Any]:
  """The teacher of a recipe.

  Args:
    config: the recipe; see section `loss`. The teacher computes in the dtype
      that `run.dtype` gives the student.
    mesh: of the run. The teacher's parameters are split as `mesh.preset` splits
      the student's, stored logits by rows.
    num_classes, class_names: of the training data; names may be None.
    fingerprint: of the training source, for stored logits.

  Returns:
    `teacher(variables, images, batch) -> logits` (B, C) float32, and its
    variables on the mesh. `images` (B, H, W, 3) are the student's. The function
    is pure, has no gradient, and changes no BatchNorm statistics.

  Raises:
    ConfigError: other classes than the data's, or in another order; logits of
      other data; stored logits with mixing.
    WeightsError: weights that cannot be read, or of another model.
  """
  weights = config.loss.teacher_weights
  if is_stored(weights):
    return _stored(config, mesh, num_classes, class_names, fingerprint)
  return _live(config, mesh, num_classes, class_names)


def is_stored(path) -> bool:
  """Whether a path is a directory of stored logits."""
  return (pathlib.Path(path) / META).exists()


# --- A live teacher ---------------------------------------------------------


def _live(config, mesh, num_classes, class_names):
  loss = config.loss
  size = loss.teacher_image_size or image_shape(config)
  size = (size, size) if isinstance(size, int) else size
  if loss.teacher_weights == RANDOM:
    model, variables = _fresh(loss.teacher, num_classes, size)
    normalize, classes = model_info(loss.teacher).normalize, None
  else:
    found = predict.load_classifier(
        loss.teacher_weights, model=loss.teacher or None, image_size=size)
    model, variables = found.model, found.variables
    normalize, classes = found.normalize, found.classes
  check_classes(loss.teacher_weights, model.num_classes, classes, num_classes,
                class_names)
  dtype = config.run.dtype
  if dtype == 'auto':
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    dtype = 'float32' if on_cpu else 'bfloat16'
  teacher = live_teacher(model.clone(dtype=dtype), size,
                         config.data.normalize,
                         loss.teacher_normalize or normalize)
  return teacher, place(variables, mesh, config.mesh.preset)


def live_teacher(model, size: tuple[int, int], student: str, own: str):
  """`teacher(variables, images, batch) -> logits` of a model in eval mode.

  Args:
    model: the Linen module.
    size: (height, width) that it is given.
    student, own: normalisation of the images, and the one that it wants.
  """
  def teacher(variables, images, batch):
    del batch
    images = renormalize(images, size, student, own).astype(images.dtype)
    logits, _ = model.apply(variables, images, train=False)
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher


def _fresh(name: str, num_classes: int, size):
  """A model with initial parameters, its blocks scanned where it can."""
  if not name:
    raise ConfigError(f'loss.teacher_weights={RANDOM!r} needs loss.teacher, '
                      'the name of a model')
  fields = {f.name for f in dataclasses.fields(model_info(name).module)}
  model = create_model(name, num_classes, **(
      {'scan': True} if 'scan' in fields else {}))
  logging.warning('the teacher %s has random parameters', name)
  init = jax.jit(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
  return model, jax.device_get(init())


def place(variables, mesh, preset: str):
  """Numpy variables -> arrays on the mesh, split as a student's would be."""
  specs = {
      name: (sharding.param_specs(tree, mesh, preset) if name == 'params'
             else jax.tree.map(lambda _: P(), tree))
      for name, tree in variables.items()}
  put = lambda x, spec: jax.make_array_from_callback(
      np.shape(x), NamedSharding(mesh, spec),
      lambda index: np.asarray(x)[index])
  return jax.tree.map(put, flax.core.unfreeze(dict(variables)), specs)


def renormalize(images, size: tuple[int, int], old: str, new: str):
  """Images normalised for one model, as another wants them.

  Args:
    images: (B, H, W, 3), normalised in the style `old`.
    size: (height, width) wanted; bilinear, half-pixel centres, no antialias.
    old, new: keys of NORMALIZATION.

  Returns:
    (B, height, width, 3) float32.
  """
  if images.shape[1:3] != tuple(size):
    images = augment.resize(images, tuple(size))
  images = images.astype(jnp.float32)
  if old == new:
    return images
  # pixel = x * std + mean of the old, then (pixel - mean) / std of the new;
  # it commutes with the resize, whose weights add up to 1.
  (old_mean, old_std), (new_mean, new_std) = (
      np.asarray(NORMALIZATION[style], np.float32).reshape(2, 1, 1, 1, 3)
      for style in (old, new))
  return images * (old_std / new_std) + (old_mean - new_mean) / new_std


def check_classes(what, count: int, names, num_classes: int, class_names):
  """ConfigError unless a teacher's classes are the data's, in their order.

  Names are compared where both have them. A name that both know must have the
  same number; names that only one knows are reported in the log, because the
  same class may go by several (n01440764, tench).
  """
  if count != num_classes:
    raise ConfigError(
        f'the teacher {what} has {count} classes, the data {num_classes}: '
        'teacher and student must tell the same classes apart')
  if not names or not class_names:
    return
  own, theirs = list(class_names), list(names)
  for i, (a, b) in enumerate(zip(own, theirs)):
    if a != b and (a in theirs or b in own):
      raise ConfigError(
          f'the teacher {what} has its classes in another order: class {i} is '
          f'{a!r} in the data, {b!r} for the teacher. Train the teacher on '
          'this data, or order the data as the teacher was trained')
  other = [f'{a!r} / {b!r}' for a, b in zip(own, theirs) if a != b]
  if other:
    logging.warning(
        '%d classes have other names for the teacher than in the data; their '
        'order is taken to be the same: %s', len(other), ', '.join(other[:3]))


# --- Stored logits ----------------------------------------------------------


def _stored(config, mesh, num_classes, class_names, fingerprint):
  path = pathlib.Path(config.loss.teacher_weights)
  meta = json.loads((path / META).read_text())
  check_classes(path, meta['num_classes'], meta['classes'], num_classes,
                class_names)
  if fingerprint is not None and fingerprint != meta['fingerprint']:
    raise ConfigError(
        f'{path} has the logits of {meta["data"]} ({meta["examples"]} '
        f'examples), which is not what data.source={config.data.source!r}, '
        f'data.split={config.data.split!r} gives now: make them again with '
        '`vit-jax teacher-logits`')
  if config.data.mixup or config.data.cutmix:
    raise ConfigError(
        f'{path} has logits of single images, but data.mixup='
        f'{config.data.mixup} and data.cutmix={config.data.cutmix} mix them: '
        'set both to 0, or give the teacher itself as loss.teacher_weights')
  table = np.load(path / LOGITS, mmap_mode='r')
  shards = sharding.batch_shards(mesh)
  rows = -(-len(table) // shards) * shards

  def block(index):
    """Rows of the table, with zeros after its end."""
    part = table[index]
    missing = len(range(*index[0].indices(rows))) - len(part)
    return np.pad(part, ((0, missing), (0, 0)))

  array = jax.make_array_from_callback(
      (rows, table.shape[1]), NamedSharding(mesh, sharding.BATCH), block)

  def teacher(variables, images, batch):
    del images
    logits = jnp.take(variables['logits'], batch['index'], axis=0)
    return jax.lax.stop_gradient(logits.astype(jnp.float32))

  return teacher, {'logits': array}


def forward(classifier: predict.Classifier, source: sources.Source, *,
            batch_size: int = 64, threads: int = 4,
            max_bad_fraction: float = 0.001
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
  mesh = sharding.make_mesh('data', devices=jax.local_devices())
  batch_size = max(1, round(batch_size / mesh.size)) * mesh.size
  variables = sharding.put_replicated(classifier.variables, mesh)
  step = jax.jit(lambda v, x: classifier.forward(v, x)[0],
                 out_shardings=sharding.replicated(mesh))
  with pipeline.eval_batches(
      source, batch_size=batch_size, image_size=classifier.image_size,
      crop=classifier.crop, interpolation=classifier.interpolation,
      threads=threads, max_bad_fraction=max_bad_fraction) as batches:
    for batch in writers.progress_bar(
        batches, len(batches), f'running {classifier.name}'):
      logits = jax.device_get(step(
          variables, sharding.put_batch(batch['image'], mesh)))
      real = batch['mask'] > 0
      yield batch['index'][real], np.asarray(logits, np.float32)[real]


def write_logits(weights, out, *, source: str, data_dir: str = '',
                 split: str = 'train', holdout: float = 0.1,
                 batch_size: int = 64, threads: int = 4,
                 dtype: str = 'float32', **options) -> dict[str, Any]:
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
  classifier = predict.load_classifier(weights, **options)
  if not classifier.num_classes:
    raise ValueError(f'{weights} has no head: a teacher must name classes')
  data = sources.open_source(source, split=split, data_dir=data_dir,
                             holdout=holdout)
  check_classes(weights, classifier.num_classes, classifier.classes,
                data.num_classes, data.class_names)
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  (out / META).unlink(missing_ok=True)  # written last: marks a whole table
  table = np.lib.format.open_memmap(
      out / LOGITS, 'w+', dtype, (len(data), classifier.num_classes))
  for index, logits in forward(classifier, data, batch_size=batch_size,
                               threads=threads):
    table[index] = logits
  table.flush()
  meta = {'teacher': str(weights), 'model': classifier.name, 'data': data.name,
          'examples': len(data), 'fingerprint': data.fingerprint,
          'num_classes': classifier.num_classes, 'classes': classifier.classes}
  (out / META).write_text(json.dumps(meta))
  return meta


def add_arguments(parser: argparse.ArgumentParser):
  from vit_jax.commands import common
  parser.add_argument('weights', help='of the teacher: a workdir or file')
  parser.add_argument('-o', '--output', required=True, metavar='DIR')
  parser.add_argument('--source', required=True,
                      help='data.source of the recipe: folder, tfds:NAME, ...')
  parser.add_argument('--data-dir', default='', metavar='DIR')
  parser.add_argument('--split', default='train')
  parser.add_argument('--holdout', type=float, default=0.1, help='data.holdout')
  parser.add_argument('--dtype', default='float32',
                      choices=('float32', 'float16'))
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--threads', type=int, default=4)
  common.add_model_arguments(parser)


def main(argv=None) -> int:
  from vit_jax.commands import common
  parser = argparse.ArgumentParser(
      prog='vit-jax teacher-logits', description=write_logits.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  add_arguments(parser)
  args = parser.parse_args(argv)
  meta = write_logits(
      args.weights, args.output, source=args.source, data_dir=args.data_dir,
      split=args.split, holdout=args.holdout, batch_size=args.batch_size,
      threads=args.threads, dtype=args.dtype, **common.loading(args))
  print(f'wrote the logits of {meta["model"]} for {meta["examples"]:,} '
        f'examples to {args.output}: give it as loss.teacher_weights')
  return 0
