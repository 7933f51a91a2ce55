"""Makes per-token labels with a teacher (arXiv:2104.10858), for VOLO."""

from collections.abc import Callable, Iterable
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
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
from vit_jax.files import write_atomically
from vit_jax.parallel.mesh import make_mesh, put_batch, put_replicated
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment

# Models whose head reads something else than the normalized tokens.
OTHER_HEADS = ('CeiT', 'BiT', 'BiTV1')


def token_logits(
  model: Any, image_size: tuple[int, int]
) -> tuple[Callable, tuple[int, int]]:
  """A teacher's logits for each cell of its token grid.

  A model with a token head (VOLO) gives them itself. Any other model whose head
  reads its normalized tokens, one of them or their mean (ViT, DeiT, DeepViT,
  CaiT, Mixer), has its head applied to every patch token; for a model that
  averages its tokens the result is the class activation map
  (arXiv:1512.04150).

  Returns:
    `(variables, images (B, H, W, 3), normalized) -> (B, h, w, C)` and (h, w).

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

  if (
    type(model).__name__ in OTHER_HEADS
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
  model: Any,
  variables: Any,
  source: Source,
  out_dir: str | os.PathLike,
  *,
  preprocessing: Preprocessing,
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
    source: images; the teacher sees each of them whole.
    out_dir: directory to write.
    preprocessing: how the teacher is fed; its crop must be None.
    top_k: classes stored for each token.
    batch_size: of all devices; rounded to a multiple of their number.
    shard_size: examples in a shard. A run that was stopped goes on with the
      first shard that is not complete.
    threads: threads that read and decode.
    teacher: what the metadata calls the teacher.
    progress: called with the number of finished examples after each shard.

  Returns:
    The metadata in `token_labels.json`. An image that cannot be read has
    logits of zero; training skips it.

  Raises:
    ValueError: the teacher cannot label tokens, its images are cropped, or the
      directory has labels of another teacher or source.
  """
  if preprocessing.crop is not None:
    raise ValueError(
      f'crop={preprocessing.crop}: label maps cover whole images, so the '
      'teacher must see them without a crop (None)'
    )
  forward, grid = token_logits(model, preprocessing.size)
  out = pathlib.Path(out_dir)
  out.mkdir(parents=True, exist_ok=True)
  number = -(-len(source) // shard_size)
  meta = {
    **_describe_labels(model, variables, source, preprocessing, teacher),
    'top_k': min(top_k, model.num_classes),
    'grid': list(grid),
    'shards': [records.shard_name('labels', i, number) for i in range(number)],
  }
  _claim(out, meta)

  mesh = make_mesh('data', devices=jax.local_devices())
  batch_size = max(1, round(batch_size / mesh.size)) * mesh.size

  best = _best_classes(forward, preprocessing.normalize, meta['top_k'])
  variables = put_replicated(variables, mesh)
  label = lambda images: jax.device_get(
    best(variables, put_batch(images, mesh))
  )
  for i, name in enumerate(meta['shards']):
    start, stop = i * shard_size, min((i + 1) * shard_size, len(source))
    if not (out / name).exists():
      with loader.eval_batches(
        Subset(source, start, stop, source.name),
        dataclasses.replace(preprocessing, crop=None),  # the whole image
        batch_size=batch_size,
        threads=threads,
      ) as batches:
        _write_shard(out / name, stop - start, batches, label)
    progress(stop)
  write_atomically(out / META, json.dumps(meta))
  return meta


def _describe_labels(
  model: Any,
  variables: Any,
  source: Source,
  preprocessing: Preprocessing,
  teacher: str,
) -> dict[str, Any]:
  """What identifies label maps: the teacher, its weights, the data."""
  return {
    'version': VERSION,
    'teacher': teacher or type(model).__name__,
    'weights': _weights_fingerprint(variables),
    'data': source.name,
    'fingerprint': source.fingerprint,
    'examples': len(source),
    'num_classes': model.num_classes,
    'image_size': list(preprocessing.size),
    'interpolation': preprocessing.interpolation,
  }


def _best_classes(forward: Callable, normalize: str, k: int) -> Callable:
  """A function (variables, uint8 images) -> logits, classes (B, h, w, k)."""

  @jax.jit
  def best(variables, images):
    images = augment.normalize(images, normalize)
    return jax.lax.top_k(forward(variables, images).astype(jnp.float32), k)

  return best


def _weights_fingerprint(variables: Any) -> str:
  """Identifies weights by the names, shapes and sums of their arrays."""
  return fingerprint(
    [
      (jax.tree_util.keystr(path), np.shape(x), float(np.sum(x)))
      for path, x in jax.tree_util.tree_leaves_with_path(variables)
    ]
  )


def _write_shard(
  path: pathlib.Path, examples: int, batches: Iterable[dict], best: Callable
) -> None:
  """Writes the records of one shard, which appears when it is complete.

  Args:
    path: of the shard.
    examples: of the shard; padding has larger indices.
    batches: 'image', 'index' and 'mask', 0 for images that cannot be read.
    best: images (B, H, W, 3) -> logits and classes (B, h, w, k).
  """
  from array_record.python import array_record_module  # pyright: ignore

  partial = path.with_name(path.name + '.partial')
  writer = array_record_module.ArrayRecordWriter(
    str(partial), 'group_size:1,uncompressed'
  )
  try:
    for batch in batches:
      logits, classes = best(batch['image'])
      # Zero for an image that cannot be read; padding is not written at all.
      logits = logits * batch['mask'].reshape(-1, 1, 1, 1)
      for j in np.flatnonzero(batch['index'] < examples):
        writer.write(encode_record(logits[j], classes[j]))
  finally:
    writer.close()
  os.replace(partial, path)


def _claim(out: pathlib.Path, meta: dict[str, Any]) -> None:
  """Writes whose labels a directory holds; ValueError if they are others."""
  plan = out / 'plan.json'
  text = json.dumps(meta, sort_keys=True)
  if plan.exists() and plan.read_text() != text:
    old = json.loads(plan.read_text())
    different = [k for k in meta if old.get(k) != meta[k]]
    raise ValueError(
      f'{out} has labels that were made with another '
      f'{", ".join(different)}: take an empty directory'
    )
  write_atomically(plan, text)
