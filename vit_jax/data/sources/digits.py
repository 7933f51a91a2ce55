"""The embedded data set: scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from vit_jax.data.decode import DEFAULT_DECODING, Decoding
from vit_jax.data.identity import fingerprint
from vit_jax.data.sources.source import Source, checked_index
from vit_jax.data.splits import unknown_split


class Digits(Source):
  """scikit-learn's handwritten digits: 8x8 gray, as uint8 RGB.

  The split into 1,437 training and 360 test images is fixed and stratified: the
  1,797 images are permuted with seed 0 and sorted by class, and every fifth of
  them is a test image.

  Args:
    split: 'train' or 'test'.

  Raises:
    ValueError: there is no such split.
  """

  image_shape = (8, 8)
  in_memory = True
  num_classes = 10

  def __init__(self, split: str):
    from sklearn import datasets  # slow to import

    data: Any = datasets.load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(
      len(data.target)
    )
    held_out = order[np.argsort(data.target[order], kind='stable')[::5]]
    is_test = np.zeros(len(order), bool)
    is_test[held_out] = True
    if split not in ('train', 'test'):
      raise unknown_split(split, ('train', 'test'), 'digits')
    self._ids = order[is_test[order] == (split == 'test')]
    gray = np.round(data.images[self._ids] * (255 / 16)).astype(np.uint8)
    self._images = np.repeat(gray[..., None], 3, axis=-1)
    self._labels = data.target[self._ids].astype(np.int32)
    self.name = f'digits/{split}'
    self.class_names = [str(i) for i in range(10)]
    self.fingerprint = fingerprint('digits', split, self._ids.tolist())

  def __len__(self):
    return len(self._ids)

  def __getitem__(self, i):
    i = checked_index(i, len(self))
    return {
      'image': self._images[i],
      'label': int(self._labels[i]),
      'id': f'digits/{self._ids[i]}',
    }

  def labels(self) -> np.ndarray:
    return self._labels

  def arrays(
    self, decoding: Decoding = DEFAULT_DECODING
  ) -> tuple[np.ndarray, np.ndarray]:
    del decoding  # the images are pixels already
    return self._images, self._labels
