"""Makes per-token labels with a teacher (arXiv:2104.10858), for VOLO."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
import os
from typing import Any

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import loader, records
from vit_jax.data.sources.source import Source, Subset
from vit_jax.data.token_labels import (
  META,
  VERSION,
  encode_record,
  model_outputs,
  token_grid,
)
from vit_jax.files import as_path, staged, write_atomically
from vit_jax.inference.jobs import ALONE, Job, Share, weights_fingerprint
from vit_jax.parallel.mesh import make_mesh, put_batch, put_replicated
from vit_jax.preprocessing import Preprocessing
from vit_jax.training import augment
from vit_jax.training.progress import ImageProgress

# Classes of models whose head does not take the normalized tokens.
OTHER_HEADS = ('CeiT', 'BiT', 'BiTV1')


def token_logits(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[Callable, tuple[int, int]]:
  """A function that computes a teacher's logits for each of its patch tokens.

  A model with a head on every token (VOLO) has such logits. For other models
  whose head takes a normalized token or the mean of the tokens (ViT, DeiT,
  DeepViT, CaiT, Mixer), the head is applied to every patch token. If the head
  takes the mean, the result is the class activation map of arXiv:1512.04150.

  Args:
    model: the teacher.
    image_size: (height, width) of its input.

  Returns:
    The function, from variables and normalized images (B, H, W, 3) to logits
    (B, h, w, C); and the grid (h, w) of the tokens.

  Raises:
    ValueError: the model's head does not take its tokens.
  """
  _, out = model_outputs(model, image_size)
  if 'logits_aux' in out:
    grid = token_grid(out['logits_aux'].shape[1], image_size)

    def from_token_head(variables, images):
      result: Any = model.apply(variables, images, train=False)
      aux = result[1]['logits_aux']
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
      f'the head of this {type(model).__name__} does not read its tokens: take '
      'a VOLO, or a ViT, DeiT, DeepViT, CaiT or Mixer that has a head and '
      'neither a representation layer nor MAP pooling'
    )
  grid = (
    tuple(out['stem'].shape[1:3])
    if out['stem'].ndim == 4
    else token_grid(out['stem'].shape[1], image_size)
  )
  leading = out['tokens'].shape[1] - math.prod(grid)

  def from_head(variables, images):
    result: Any = model.apply(variables, images, train=False)
    _, out = result
    tokens = out['tokens'][:, leading:].astype(jnp.float32)
    head = variables['params']['head']
    logits = tokens @ head['kernel'] + head['bias'].reshape(1, 1, -1)
    return logits.reshape(logits.shape[0], *grid, logits.shape[-1])

  return from_head, grid


def make_token_labels(
  model: nn.Module,
  variables: Mapping[str, Any],
  source: Source,
  out_dir: str | os.PathLike,
  *,
  preprocessing: Preprocessing,
  columns: Sequence[int] | None = None,
  top_k: int = 5,
  batch_size: int = 64,
  shard_size: int = 8192,
  threads: int = 4,
  teacher: str = '',
  share: Share = ALONE,
) -> dict[str, Any]:
  """Labels the tokens of all images of a source with a teacher.

  A run that was stopped continues with the first incomplete shard. The labels
  of an image that cannot be read are zeros; training skips the image.

  Args:
    model, variables: the teacher, see `token_logits`. It runs on all local
      devices.
    source: the images.
    out_dir: directory to write.
    preprocessing: that of the teacher; labels are for whole images: no crop.
    columns: the teacher's number of each class of the source; None: the same.
    top_k: number of classes to keep for each token.
    batch_size: images in a batch; rounded to a multiple of the devices.
    shard_size: number of examples in a shard.
    threads: number of threads that read and decode images.
    teacher: name of the teacher in the metadata.
    share: which of several processes this one is.

  Returns:
    The metadata in `token_labels.json`.

  Raises:
    ValueError: the teacher cannot label tokens, its images are cropped, or the
      directory has labels of another teacher or source.
  """
  if preprocessing.crop is not None:
    raise ValueError(
      f'crop={preprocessing.crop}: token labels are for whole images, so the '
      "teacher's crop must be None"
    )
  num_classes = model.num_classes if columns is None else len(columns)
  forward, grid = token_logits(model, preprocessing.size)
  out = as_path(out_dir)
  number = -(-len(source) // shard_size)
  meta = {
    **_describe_labels(
      model, variables, source, preprocessing, teacher, num_classes
    ),
    'top_k': min(top_k, num_classes),
    'grid': list(grid),
    'shards': [records.shard_name('labels', i, number) for i in range(number)],
  }
  job = Job(
    out,
    len(source),
    meta,
    shard_size=shard_size,
    prefix='labels',
    suffix='.array_record',
    share=share,
  )
  mesh = make_mesh('data', devices=jax.local_devices())
  batch_size = max(1, round(batch_size / mesh.size)) * mesh.size
  best = _best_classes(forward, preprocessing.normalize, meta['top_k'], columns)
  variables = put_replicated(variables, mesh)
  label = lambda images: jax.device_get(
    best(variables, put_batch(images, mesh))
  )
  how = {'batch_size': batch_size, 'threads': threads}
  _write_shards(job, source, preprocessing, label, **how)
  if job.is_complete():
    write_atomically(out / META, json.dumps(meta))
  return meta


def _write_shards(
  job: Job,
  source: Source,
  preprocessing: Preprocessing,
  label: Callable,
  **how: Any,
) -> None:
  """Writes the missing shards of a job; `how` is for `eval_batches`."""
  with job.progress('token labels') as progress:
    for i in job.open_shards():
      start, stop = job.bounds(i)
      with loader.eval_batches(
        Subset(source, start, stop, source.name),
        preprocessing,
        **how,
      ) as batches:
        _write_shard(job.path(i), stop - start, batches, label, progress)


def _describe_labels(
  model: nn.Module,
  variables: Mapping[str, Any],
  source: Source,
  preprocessing: Preprocessing,
  teacher: str,
  num_classes: int,
) -> dict[str, Any]:
  """The metadata that identifies labels: the teacher, its weights, the data."""
  return {
    'version': VERSION,
    'teacher': teacher or type(model).__name__,
    'weights': weights_fingerprint(variables),
    'data': source.name,
    'fingerprint': source.fingerprint,
    'examples': len(source),
    'num_classes': num_classes,
    'image_size': list(preprocessing.size),
    'interpolation': preprocessing.interpolation,
  }


def _best_classes(
  forward: Callable,
  normalize: str,
  k: int,
  columns: Sequence[int] | None = None,
) -> Callable:
  """The function that finds the best classes of each token.

  Args:
    forward: the function of `token_logits`.
    normalize: normalization of the teacher's input.
    k: number of classes.
    columns: as in `make_token_labels`.

  Returns:
    A function from variables and uint8 images (B, H, W, 3) to the k largest
    logits and their classes, both (B, h, w, k).
  """

  @jax.jit
  def best(variables, images):
    images = augment.normalize(images, normalize)
    logits = forward(variables, images).astype(jnp.float32)
    if columns is not None:
      logits = logits[..., np.asarray(columns)]
    return jax.lax.top_k(logits, k)

  return best


def _write_shard(
  path: epath.Path,
  examples: int,
  batches: Iterable[dict],
  best: Callable,
  progress: ImageProgress,
) -> None:
  """Writes a shard, which appears under its name when it is complete.

  Args:
    path: file to write.
    examples: number of examples in the shard.
    batches: batches of its images. 'index' has their numbers in the shard,
      which are not below `examples` for padding; 'mask' is 0 for images that
      cannot be read.
    best: function from images (B, H, W, 3) to logits and classes (B, h, w, k).
    progress: counts the labeled images.
  """
  from array_record.python import array_record_module  # pyright: ignore

  with staged(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      temporary, 'group_size:1,uncompressed'
    )
    try:
      for batch in batches:
        logits, classes = best(batch['image'])
        # Zeros for images that cannot be read; padding is not written.
        logits = logits * batch['mask'].reshape(-1, 1, 1, 1)
        real = np.flatnonzero(batch['index'] < examples)
        for j in real:
          writer.write(encode_record(logits[j], classes[j]))
        progress.advance(len(real))
    finally:
      writer.close()
