"""Makes per-token labels (VOLO) with a teacher."""

from collections.abc import Callable
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from vit_jax.data import loader, records
from vit_jax.data.sources.source import Source, Subset, fingerprint
from vit_jax.data.token_labels import (
  META,
  VERSION,
  _grid,
  _outputs,
  encode_record,
)
from vit_jax.preprocessing import NORMALIZATION

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
  if (
    type(model).__name__ in wrong
    or 'tokens' not in out
    or not model.num_classes
    or getattr(model, 'representation_size', None)
    or getattr(model, 'norm_after_pool', False)
    or getattr(model, 'pool', 'token') not in ('token', 'gap', 'none')
  ):
    raise ValueError(
      f'the head of this {type(model).__name__} does not read its tokens; a '
      'teacher of token labels is a VOLO, or a ViT, DeiT, DeepViT, CaiT or '
      'Mixer with a head (no representation layer, no MAP pooling)'
    )
  grid = (
    tuple(out['stem'].shape[1:3])
    if out['stem'].ndim == 4
    else _grid(out['stem'].shape[1], image_size)
  )
  leading = out['tokens'].shape[1] - math.prod(grid)

  def from_head(variables, images):
    _, out = model.apply(variables, images, train=False)
    tokens = out['tokens'][:, leading:].astype(jnp.float32)
    head = variables['params']['head']
    logits = tokens @ head['kernel'] + head['bias'].reshape(1, 1, -1)
    return logits.reshape(logits.shape[0], *grid, logits.shape[-1])

  return from_head, grid


def make_token_labels(
  model,
  variables,
  source: Source,
  out_dir,
  *,
  image_size: tuple[int, int],
  normalize: str = 'imagenet',
  interpolation: str = 'bicubic',
  top_k: int = 5,
  batch_size: int = 64,
  shard_size: int = 8192,
  threads: int = 4,
  teacher: str = '',
  progress: Callable[[int], Any] = lambda done: None,
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
    'version': VERSION,
    'teacher': teacher or type(model).__name__,
    'weights': fingerprint(
      [
        (jax.tree_util.keystr(path), np.shape(x), float(np.sum(x)))
        for path, x in jax.tree_util.tree_leaves_with_path(variables)
      ]
    ),
    'data': source.name,
    'fingerprint': source.fingerprint,
    'examples': len(source),
    'num_classes': model.num_classes,
    'top_k': top_k,
    'grid': list(grid),
    'image_size': list(image_size),
    'interpolation': interpolation,
    'shards': [records.shard_name('labels', i, number) for i in range(number)],
  }
  _claim(out, meta)

  devices = jax.local_devices()
  mesh = Mesh(np.array(devices), ('data',))
  batch_size = max(1, round(batch_size / len(devices))) * len(devices)
  mean, std = (
    np.array(x, np.float32).reshape(1, 1, 1, 3)
    for x in NORMALIZATION[normalize]
  )

  @jax.jit
  def best(variables, images):
    logits = forward(variables, (images.astype(jnp.float32) - mean) / std)
    return jax.lax.top_k(logits.astype(jnp.float32), top_k)

  variables = jax.device_put(variables, NamedSharding(mesh, P()))
  for i, name in enumerate(meta['shards']):
    start, stop = i * shard_size, min((i + 1) * shard_size, len(source))
    if not (out / name).exists():
      part = Subset(source, start, stop, source.name)
      partial = out / (name + '.partial')
      with (
        _writer(partial) as write,
        loader.eval_batches(
          part,
          batch_size=batch_size,
          image_size=tuple(image_size),
          interpolation=interpolation,
          threads=threads,
        ) as batches,
      ):
        for batch in batches:
          images = jax.device_put(
            batch['image'], NamedSharding(mesh, P('data'))
          )
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


def _claim(out: pathlib.Path, meta):
  """Says in the directory whose labels these are, or refuses."""
  plan = out / 'plan.json'
  text = json.dumps(meta, sort_keys=True)
  if plan.exists() and plan.read_text() != text:
    old = json.loads(plan.read_text())
    different = [k for k in meta if old.get(k) != meta[k]]
    raise ValueError(
      f'{out} has labels that were made with another '
      f'{", ".join(different)}: take an empty directory'
    )
  plan.write_text(text)


class _writer:
  """Context of a function that appends a record to a new file."""

  def __init__(self, path: pathlib.Path):
    from array_record.python import array_record_module

    self._writer = array_record_module.ArrayRecordWriter(
      str(path), 'group_size:1,uncompressed'
    )

  def __enter__(self):
    return self._writer.write

  def __exit__(self, *unused):
    self._writer.close()
