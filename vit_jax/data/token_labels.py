"""Token labels: a class for every patch, from a teacher (arXiv:2104.10858).

A teacher sees each training image whole, once, and gives logits for every
place of its token grid; the k best classes of each place are stored:

    vit-jax token-labels WEIGHTS --source SOURCE --data-dir DIR -o LABELS

and a recipe with `data.labels = LABELS` trains on them. The host sends an
image's map, its crop's box and a small grid (6 kB instead of 800 kB at 14x14
tokens of 1,000 classes); `token_targets.expand` makes the targets on the
device.

A directory of labels is ArrayRecord shards, one record an example, and
`token_labels.json`, which is written last. A record is k*h*w float16 logits,
then as many int32 classes, both (k, h, w), little endian. Shards appear when
they are whole, and a run that was killed goes on with the first missing one.
(h, w) label map, k stored classes a place, C classes.
"""

import argparse
from collections.abc import Callable
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from vit_jax.data import pipeline, records, sources, transforms
from vit_jax.data.token_targets import token_source
from vit_jax.models.registry import NORMALIZATION

META = 'token_labels.json'
VERSION = 1


# --- Stored labels ----------------------------------------------------------


class TokenLabels:
  """A directory of label maps.

  `labels[i]` is the map of example i: logits float16 and classes int32,
  (k, h, w). `labels(i, geometry)` is what `pipeline.train_batches` adds to an
  example: 'token_logits', 'token_classes', 'token_box' and 'token_source',
  which `token_targets.expand` turns into targets.

  Attributes:
    meta: teacher, model, examples, fingerprint of the data, num_classes, top_k,
      grid.
  """

  def __init__(self, path, *, grid: tuple[int, int] = (14, 14),
               size: tuple[int, int] = (224, 224), swap_axes: bool = False):
    """Opens a directory.

    Args:
      path: written by `make_token_labels`.
      grid: tokens of the student; (1, 1) for ReLabel.
      size: (height, width) of the images that the host makes.
      swap_axes: read boxes with rows and columns exchanged, as the released
        code does.

    Raises:
      ValueError: no such labels, unfinished, or not whole.
    """
    self._path = pathlib.Path(path)
    meta = self._path / META
    if not meta.exists():
      raise ValueError(
          f'{path} has no {META}: no token labels, or unfinished ones. Make '
          'them, or let them be finished, with `vit-jax token-labels`')
    self.meta = json.loads(meta.read_text())
    if self.meta.get('version') != VERSION:
      raise ValueError(f'{path} has labels of version '
                       f'{self.meta.get("version")}, this reads {VERSION}')
    missing = [name for name in self.meta['shards']
               if not (self._path / name).exists()]
    if missing:
      raise ValueError(f'{path} lacks {len(missing)} of '
                       f'{len(self.meta["shards"])} shards, such as '
                       f'{missing[0]}: copy them, or make them again')
    self.grid, self.size, self.swap_axes = tuple(grid), tuple(size), swap_axes
    self._records = None

  def __len__(self):
    return self.meta['examples']

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    if self._records is None:  # opened lazily: readers do not pickle
      from array_record.python import array_record_data_source
      self._records = array_record_data_source.ArrayRecordDataSource(
          [str(self._path / name) for name in self.meta['shards']])
    shape = (self.meta['top_k'], *self.meta['grid'])
    record, n = self._records[int(index)], math.prod(shape)
    return (np.frombuffer(record, '<f2', n).reshape(shape),
            np.frombuffer(record, '<i4', n, offset=2 * n).reshape(shape))

  def __call__(self, index: int, geometry: transforms.Geometry
               ) -> dict[str, np.ndarray]:
    logits, classes = self[index]
    top, left, height, width = geometry.box
    box = ((left, top, width, height) if self.swap_axes
           else (top, left, height, width))
    return {'token_logits': logits, 'token_classes': classes,
            'token_box': np.array(box, np.float32),
            'token_source': token_source(geometry, self.grid, self.size)}

  def __getstate__(self):
    return {**self.__dict__, '_records': None}

  def check(self, source: sources.Source, num_classes: int):
    """ValueError unless the labels are of this source and its classes."""
    if self.meta['num_classes'] != num_classes:
      raise ValueError(
          f'the token labels in {self._path} are of '
          f'{self.meta["num_classes"]} classes, the data has {num_classes}')
    if self.meta['fingerprint'] != source.fingerprint:
      raise ValueError(
          f'the token labels in {self._path} are of {self.meta["data"]} '
          f'({len(self)} examples), not of {source.name} ({len(source)}): make '
          'them of the same data.source, data.dir and data.split')


def open_for_training(path, model, source, cfg, num_classes: int
                      ) -> TokenLabels:
  """The labels of a recipe.

  Args:
    path: of the labels.
    model: the student.
    source: of the training data.
    cfg: section `data` of the recipe.
    num_classes: of the head.

  Raises:
    ValueError: labels of other data, or an image that is not square where the
      student's tokens cannot be laid out.
  """
  travels = (transforms.image_size(cfg.device_resize) if cfg.device_resize
             else transforms.target_size(cfg))
  labels = TokenLabels(
      path, grid=student_grid(model, transforms.target_size(cfg)),
      size=travels, swap_axes=cfg.labels_swap_axes)
  labels.check(source, num_classes)
  return labels


def student_grid(model, image_size: tuple[int, int]) -> tuple[int, int]:
  """Grid of a model's token head; (1, 1) if it has none."""
  out = _outputs(model, image_size)[1]
  if 'logits_aux' not in out:
    return 1, 1
  return _grid(out['logits_aux'].shape[1], image_size)


def _outputs(model, image_size):
  init = lambda key, x: model.init_with_output(key, x, train=False)[0]
  return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(
      (1, *image_size, 3), jnp.float32))


def _grid(tokens: int, image_size) -> tuple[int, int]:
  rows = max(1, round(math.sqrt(tokens * image_size[0] / image_size[1])))
  if tokens % rows:
    raise ValueError(f'{tokens} tokens of an image of {image_size[0]}x'
                     f'{image_size[1]} make no grid')
  return rows, tokens // rows


# --- Making labels ----------------------------------------------------------


def token_logits(model, image_size: tuple[int, int]) -> tuple[Callable, tuple]:
  """A teacher's logits for each place of its token grid.

  A model with a token head (VOLO) gives them itself. Any other model whose head
  reads its normalised tokens, one of them or their mean (ViT, DeiT, DeepViT,
  CaiT, Mixer), has its head applied to every patch token; for a mean that is
  the class activation map (arXiv:1512.04150).

  Returns:
    `(variables, images (B, H, W, 3), normalised) -> (B, h, w, C)` and (h, w).

  Raises:
    ValueError: the model's head does not read its tokens.
  """
  _, out = _outputs(model, image_size)
  if 'logits_aux' in out:
    grid = _grid(out['logits_aux'].shape[1], image_size)

    def from_token_head(variables, images):
      aux = model.apply(variables, images, train=False)[1]['logits_aux']
      return aux.reshape(aux.shape[0], *grid, aux.shape[-1])

    return from_token_head, grid

  wrong = ('CeiT', 'BiT', 'BiTV1')  # the head reads something else
  if (type(model).__name__ in wrong or 'tokens' not in out
      or not model.num_classes or getattr(model, 'representation_size', None)
      or getattr(model, 'norm_after_pool', False)
      or getattr(model, 'pool', 'token') not in ('token', 'gap', 'none')):
    raise ValueError(
        f'the head of this {type(model).__name__} does not read its tokens; a '
        'teacher of token labels is a VOLO, or a ViT, DeiT, DeepViT, CaiT or '
        'Mixer with a head (no representation layer, no MAP pooling)')
  grid = (tuple(out['stem'].shape[1:3]) if out['stem'].ndim == 4
          else _grid(out['stem'].shape[1], image_size))
  leading = out['tokens'].shape[1] - math.prod(grid)

  def from_head(variables, images):
    _, out = model.apply(variables, images, train=False)
    tokens = out['tokens'][:, leading:].astype(jnp.float32)
    head = variables['params']['head']
    logits = tokens @ head['kernel'] + head['bias'].reshape(1, 1, -1)
    return logits.reshape(logits.shape[0], *grid, logits.shape[-1])

  return from_head, grid


def make_token_labels(model, variables, source: sources.Source, out_dir, *,
                      image_size: tuple[int, int], normalize: str = 'imagenet',
                      interpolation: str = 'bicubic', top_k: int = 5,
                      batch_size: int = 64, shard_size: int = 8192,
                      threads: int = 4, teacher: str = '',
                      progress: Callable[[int], Any] = lambda done: None
                      ) -> dict[str, Any]:
  """Runs a teacher over a source and writes its label maps.

  Args:
    model, variables: the teacher, see `token_logits`; runs on all local
      devices.
    source: whole images, each resized to `image_size`.
    out_dir: directory to write.
    image_size: (height, width) that the teacher is given.
    normalize: key of NORMALIZATION.
    interpolation: of the resizing.
    top_k: classes stored for each place.
    batch_size: of all devices; rounded to a multiple of their number.
    shard_size: examples in a shard, the unit of going on after a stop.
    threads: that read and decode.
    teacher: what the metadata calls the teacher.
    progress: told the number of finished examples after each shard.

  Returns:
    The metadata in `token_labels.json`. An image that cannot be read has
    logits of zero; training skips it.

  Raises:
    ValueError: the teacher cannot label tokens, or the directory has labels of
      another teacher or source.
  """
  forward, grid = token_logits(model, tuple(image_size))
  top_k = min(top_k, model.num_classes)
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  number = -(-len(source) // shard_size)
  meta = {
      'version': VERSION, 'teacher': teacher or type(model).__name__,
      'weights': sources.fingerprint([
          (jax.tree_util.keystr(path), np.shape(x), float(np.sum(x)))
          for path, x in jax.tree_util.tree_leaves_with_path(variables)]),
      'data': source.name, 'fingerprint': source.fingerprint,
      'examples': len(source), 'num_classes': model.num_classes,
      'top_k': top_k, 'grid': list(grid), 'image_size': list(image_size),
      'interpolation': interpolation,
      'shards': [records.shard_name('labels', i, number)
                 for i in range(number)]}
  _claim(out, meta)

  devices = jax.local_devices()
  mesh = Mesh(np.array(devices), ('data',))
  batch_size = max(1, round(batch_size / len(devices))) * len(devices)
  mean, std = (np.array(x, np.float32).reshape(1, 1, 1, 3)
               for x in NORMALIZATION[normalize])

  @jax.jit
  def best(variables, images):
    logits = forward(variables, (images.astype(jnp.float32) - mean) / std)
    return jax.lax.top_k(logits.astype(jnp.float32), top_k)

  variables = jax.device_put(variables, NamedSharding(mesh, P()))
  for i, name in enumerate(meta['shards']):
    start, stop = i * shard_size, min((i + 1) * shard_size, len(source))
    if not (out / name).exists():
      part = sources.Subset(source, start, stop, source.name)
      partial = out / (name + '.partial')
      with _writer(partial) as write, pipeline.eval_batches(
          part, batch_size=batch_size, image_size=tuple(image_size),
          interpolation=interpolation, threads=threads) as batches:
        for batch in batches:
          images = jax.device_put(
              batch['image'], NamedSharding(mesh, P('data')))
          logits, classes = jax.device_get(best(variables, images))
          logits = logits * batch['mask'].reshape(-1, 1, 1, 1)
          for j in np.flatnonzero(batch['index'] < stop - start):
            write(encode_record(logits[j], classes[j]))
      os.replace(partial, out / name)
    progress(stop)
  partial = out / (META + '.partial')
  partial.write_text(json.dumps(meta))
  os.replace(partial, out / META)
  return meta


def encode_record(logits: np.ndarray, classes: np.ndarray) -> bytes:
  """The record of a map (h, w, k)."""
  first = lambda x, dtype: np.ascontiguousarray(
      np.moveaxis(x, -1, 0), dtype).tobytes()
  return first(logits, '<f2') + first(classes, '<i4')


def _claim(out: pathlib.Path, meta):
  """Says in the directory whose labels these are, or refuses."""
  plan = out / 'plan.json'
  text = json.dumps(meta, sort_keys=True)
  if plan.exists() and plan.read_text() != text:
    old = json.loads(plan.read_text())
    different = [k for k in meta if old.get(k) != meta[k]]
    raise ValueError(
        f'{out} has labels that were made with another '
        f'{", ".join(different)}: take an empty directory')
  plan.write_text(text)


class _writer:
  """Context of a function that appends a record to a new file."""

  def __init__(self, path: pathlib.Path):
    from array_record.python import array_record_module
    self._writer = array_record_module.ArrayRecordWriter(
        str(path), 'group_size:1,uncompressed')

  def __enter__(self):
    return self._writer.write

  def __exit__(self, *unused):
    self._writer.close()


def main(argv=None) -> int:
  """`vit-jax token-labels`."""
  from vit_jax import predict
  from vit_jax.commands import common
  parser = argparse.ArgumentParser(
      prog='vit-jax token-labels', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('weights', help='of the teacher: a workdir or file')
  parser.add_argument('-o', '--output', required=True, metavar='DIR')
  parser.add_argument('--source', required=True,
                      help='data.source of the recipe: folder, tfds:NAME, ...')
  parser.add_argument('--data-dir', default='', metavar='DIR')
  parser.add_argument('--split', default='train')
  parser.add_argument('--holdout', type=float, default=0.1, help='data.holdout')
  parser.add_argument('--top-k', type=int, default=5)
  parser.add_argument('--batch-size', type=int, default=64)
  parser.add_argument('--threads', type=int, default=4)
  common.add_model_arguments(parser)
  args = parser.parse_args(argv)
  teacher = predict.load_classifier(args.weights, **common.loading(args))
  source = sources.open_source(args.source, split=args.split,
                               data_dir=args.data_dir, holdout=args.holdout)
  if teacher.num_classes != source.num_classes:
    raise ValueError(
        f'the teacher {args.weights} has {teacher.num_classes} classes, '
        f'{source.name} has {source.num_classes}')
  meta = make_token_labels(
      teacher.model, teacher.variables, source, args.output,
      image_size=teacher.image_size, normalize=teacher.normalize,
      interpolation=teacher.interpolation, top_k=args.top_k,
      batch_size=args.batch_size, threads=args.threads, teacher=teacher.name,
      progress=lambda done: print(f'{done:,} of {len(source):,}', flush=True))
  print(f'wrote {meta["grid"][0]}x{meta["grid"][1]} maps of the '
        f'{meta["top_k"]} best classes of {meta["examples"]:,} examples to '
        f'{args.output}: give it as data.labels')
  return 0
