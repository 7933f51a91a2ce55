"""Token labels: classes for every patch, from a teacher (arXiv:2104.10858).

A teacher sees each whole training image once, and its logits for every cell of
its token grid are reduced to the k best classes and stored:

    vit-jax token-labels WEIGHTS --source SOURCE --data DIR -o LABELS

A recipe with `data.labels = LABELS` trains on them. For each image the host
sends the stored map, the box of the crop and the origin of each token: 6 kB,
instead of the 800 kB of dense targets for 14x14 tokens and 1,000 classes. On
the device, `token_targets.expand` makes the targets.

A directory of labels consists of ArrayRecord shards, with one record for each
example, and `token_labels.json`, which is written last. A record is k*h*w
float16 logits, then as many int32 classes, both (k, h, w), little endian. A
shard gets its name when it is complete, so that a killed run continues with the
first missing shard.

Shapes: (h, w) label map, k classes stored for each cell, C classes.
"""

import json
import math
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import files
from vit_jax.data.shard_reader import open_shards
from vit_jax.data.sources.source import Source
from vit_jax.data.token_targets import token_source
from vit_jax.data.transforms import Geometry
from vit_jax.files import as_path

META = 'token_labels.json'
VERSION = 1


class TokenLabels:
  """A directory of label maps.

  `labels[i]` is the map of example i: logits float16 and classes int32,
  (k, h, w). `labels(i, geometry)` is what `loader.train_batches` adds to an
  example: 'token_logits', 'token_classes', 'token_box' and 'token_source',
  which `token_targets.expand` turns into targets.

  Attributes:
    meta: the content of `token_labels.json`: among others 'teacher',
      'examples', 'fingerprint' (of the data), 'num_classes', 'top_k', 'grid'.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    grid: tuple[int, int] = (14, 14),
    size: tuple[int, int] = (224, 224),
    swap_axes: bool = False,
  ):
    """Opens a directory.

    Args:
      path: directory that `teachers.token_labels.make_token_labels` wrote.
      grid: (rows, columns) of the student's tokens; (1, 1) for ReLabel.
      size: (height, width) of the images that the host makes.
      swap_axes: exchange the rows and columns of boxes, as VOLO's released
        code does.

    Raises:
      ValueError: there are no such labels, they are unfinished, or lack shards.
    """
    self._path = as_path(path)
    meta = self._path / META
    if not meta.exists():
      raise ValueError(
        f'{path} has no {META}: it has no token labels, or unfinished ones. '
        'Make or finish them with `vit-jax token-labels`'
      )
    self.meta = json.loads(files.read_text(meta))
    if self.meta.get('version') != VERSION:
      raise ValueError(
        f'{path} has labels of version {self.meta.get("version")}; this '
        f'version of vit_jax reads {VERSION}. Make them again with '
        '`vit-jax token-labels`'
      )
    missing = [
      name for name in self.meta['shards'] if not (self._path / name).is_file()
    ]
    if missing:
      raise ValueError(
        f'{path} lacks {len(missing)} of '
        f'{len(self.meta["shards"])} shards, such as '
        f'{missing[0]}: copy them, or make them again'
      )
    self.grid, self.size, self.swap_axes = grid, size, swap_axes
    self._records = None

  def __len__(self):
    return self.meta['examples']

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    if self._records is None:
      # Not opened in __init__: the labels are pickled for worker processes, and
      # an open reader cannot be.
      self._records = open_shards(
        [str(self._path / name) for name in self.meta['shards']]
      )
    shape = (self.meta['top_k'], *self.meta['grid'])
    record, n = self._records[int(index)], math.prod(shape)
    return (
      np.frombuffer(record, '<f2', n).reshape(shape),
      np.frombuffer(record, '<i4', n, offset=2 * n).reshape(shape),
    )

  def __call__(self, index: int, geometry: Geometry) -> dict[str, np.ndarray]:
    logits, classes = self[index]
    top, left, height, width = geometry.box
    box = (
      (left, top, width, height)
      if self.swap_axes
      else (top, left, height, width)
    )
    return {
      'token_logits': logits,
      'token_classes': classes,
      'token_box': np.array(box, np.float32),
      'token_source': token_source(geometry, self.grid, self.size),
    }

  def __getstate__(self):
    return {**self.__dict__, '_records': None}

  def check(self, source: Source, num_classes: int) -> None:
    """Raises ValueError unless the labels were made for `source`.

    Args:
      source: the training data.
      num_classes: number of classes of the student's head.
    """
    if self.meta['num_classes'] != num_classes:
      raise ValueError(
        f'the token labels in {self._path} are of '
        f'{self.meta["num_classes"]} classes, the data has {num_classes}: make '
        'them with a teacher of the same classes'
      )
    if not source.has_fingerprint(self.meta['fingerprint']):
      raise ValueError(
        f'the token labels in {self._path} are of {self.meta["data"]} '
        f'({len(self)} examples), not of {source.name} ({len(source)}): make '
        'them for the same data.source, data.dir and data.split'
      )


def open_for_training(
  path: str | os.PathLike,
  model: nn.Module,
  source: Source,
  num_classes: int,
  *,
  image_size: tuple[int, int],
  host_size: tuple[int, int],
  swap_axes: bool = False,
) -> TokenLabels:
  """Opens token labels and checks that they fit the data and the student.

  Args:
    path: directory of the labels.
    model: the student.
    source: the training data.
    num_classes: number of classes of the student's head.
    image_size: (height, width) of the images that the model gets.
    host_size: (height, width) of the images that the host makes.
    swap_axes: see `TokenLabels`.

  Raises:
    ValueError: the labels are of other data, or the student's tokens do not
      form a grid on images of this size.
  """
  labels = TokenLabels(
    path,
    grid=student_grid(model, image_size),
    size=host_size,
    swap_axes=swap_axes,
  )
  labels.check(source, num_classes)
  return labels


def student_grid(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[int, int]:
  """(rows, columns) of a model's token logits; (1, 1) if it has none."""
  out = model_outputs(model, image_size)[1]
  if 'logits_aux' not in out:
    return 1, 1
  return token_grid(out['logits_aux'].shape[1], image_size)


def model_outputs(
  model: nn.Module, image_size: tuple[int, int]
) -> tuple[jax.ShapeDtypeStruct, dict[str, Any]]:
  """Shapes of the logits and intermediates of a model, for one image.

  Args:
    model: a Linen module.
    image_size: (height, width) in pixels.
  """
  init = lambda key, x: model.init_with_output(key, x, train=False)[0]
  return jax.eval_shape(  # pyright: ignore[reportReturnType]
    init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32),
  )


def token_grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
  """The grid (rows, columns) of the patch tokens of an image.

  Args:
    tokens: number of the tokens.
    image_size: (height, width) in pixels.

  Raises:
    ValueError: the tokens do not form a grid.
  """
  rows = max(1, round(math.sqrt(tokens * image_size[0] / image_size[1])))
  if tokens % rows:
    raise ValueError(
      f'the {tokens} tokens of an image of {image_size[0]}x{image_size[1]} '
      'do not form a grid: train on square images'
    )
  return rows, tokens // rows


def encode_record(logits: np.ndarray, classes: np.ndarray) -> bytes:
  """The record of one map: logits and classes, both (h, w, k)."""
  classes_first = lambda x, dtype: np.ascontiguousarray(
    np.moveaxis(x, -1, 0), dtype
  ).tobytes()
  return classes_first(logits, '<f2') + classes_first(classes, '<i4')
