"""Batches whose images are written into the memory of the batch.

Making each image in memory of its own, and copying all of them into a batch,
would read and write every pixel once more.
"""

import threading

import grain
import numpy as np

from vit_jax.data.transforms import TrainTransform

_local = threading.local()


def place() -> np.ndarray | None:
  """Where the example that this thread is loading should write its image.

  An array of the size and type of the transform. None where an example is
  loaded on its own.
  """
  return getattr(_local, 'place', None)


class LoadedBatches(grain.MapDataset):
  """Batches of consecutive examples of a data set; the last ones may be left.

  Args:
    parent: loads the examples, dicts of arrays and numbers without 'image'.
      The image is written to `place()` in the thread that asks for the example.
    batch_size: number of examples in a batch.
    transform: says the size and type of an image.
  """

  _MUTATES_ELEMENT_SPEC = False

  def __init__(
    self,
    parent: grain.MapDataset,
    batch_size: int,
    transform: TrainTransform,
  ):
    super().__init__(parent)
    self._batch_size = batch_size
    self._shape, self._dtype = (*transform.size, 3), transform.dtype

  def __len__(self):
    return len(self._parent) // self._batch_size

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    first = index * self._batch_size
    images = np.empty((self._batch_size, *self._shape), self._dtype)
    examples = []
    try:
      for i, image in enumerate(images):
        _local.place = image
        examples.append(self._parent[first + i])
    finally:
      _local.place = None
    others = {key: np.stack([x[key] for x in examples]) for key in examples[0]}
    return {'image': images, **others}
